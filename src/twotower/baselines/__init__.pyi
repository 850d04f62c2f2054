from twotower.baselines.als import ALS as ALS
from twotower.baselines.als import choose_als as choose_als
from twotower.baselines.bm25 import BM25 as BM25
from twotower.baselines.bm25 import choose_bm25 as choose_bm25
from twotower.baselines.ease import EASE as EASE
from twotower.baselines.ease import choose_ease as choose_ease
from twotower.baselines.item_knn import ItemKNN as ItemKNN
from twotower.baselines.item_knn import choose_item_knn as choose_item_knn
from twotower.baselines.popularity import Popularity as Popularity
from twotower.baselines.random_order import RandomOrder as RandomOrder
from twotower.baselines.recent_popularity import RecentPopularity as RecentPopularity
from twotower.baselines.recent_popularity import (
    choose_recent_popularity as choose_recent_popularity,
)
from twotower.baselines.specs import Baselines as Baselines
from twotower.baselines.specs import fit_baselines as fit_baselines
