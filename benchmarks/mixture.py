"""MIX=4,2,gates python benchmarks/mixture.py tmall towers.history=transformer: one training by epoch."""
import sys,os,time,json

import torch; torch.set_num_threads(1)
from strong_baselines import task
from twotower.training.choices import resolve
from twotower.training.trainer import Trainer
from twotower.training.callbacks import Callback
from twotower.evaluation.ranking import evaluate_on
from twotower.data.dataset import Part
class T(Callback):
    def on_epoch(self,r): print(json.dumps({k:r[k] for k in ('epoch','loss','valid_ndcg@10','temperature','seconds') if k in r}),flush=True)
name=sys.argv[1]; f=task(name)
config=f.config.with_settings(["training.seed="+os.environ.get('SEED','0'),"training.threads=1","training.solver=gradient","towers.spectral_dim=0","towers.similarity=cosine",*sys.argv[2:]])
config,choices=resolve(config,f.dataset)
print(os.environ.get('MIX'),config.towers.history,config.towers.question_time,config.loss.negatives,config.training.batch_size,flush=True)
t=Trainer(f.dataset,f.sides,config)
a=time.process_time()
if os.environ.get("LOAD"):
    m=t.trained.load_state_dict(torch.load(os.environ["LOAD"]),strict=False); print("missing",m.missing_keys,"unexpected",m.unexpected_keys, "valid at start", t.validate(),flush=True)
p=t.fit(watcher=T())
print('best',p.best_metric,p.best_epoch,'cpu',time.process_time()-a,flush=True)
cases=f.dataset.cases(Part.VALID)
e=evaluate_on(f.dataset,t.scorer(),cases,(10,20,100),metrics=("hit_rate","ndcg"))
print({k:round(v,5) for k,v in e.mean().items()})
if os.environ.get('SAVE'):
    import numpy as np
    np.savez(os.environ['SAVE'],**{k:v for k,v in e.values.items()})
    torch.save(t.trained.state_dict(),os.environ['SAVE']+'.pt')
