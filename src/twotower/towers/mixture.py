"""``Mixture``: several vectors a query and an item, and a score that weighs their dot products pair by pair."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GATE_SCALE = 10.0
"""What dot products of length-1 vectors are multiplied by before they open a gate: of the order of 1 then."""
_NOISE = 0.3


class Mixture(nn.Module):
    """The score of a pair as a mixture of the dot products of its parts.

    Args:
        dim: Width of both towers' outputs.
        query_parts: Vectors of a query.
        item_parts: Vectors of an item.
        merge: gates or max.
    """

    def __init__(self, dim: int, query_parts: int, item_parts: int, merge: str = "gates", dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.query_parts, self.item_parts = dim, query_parts, item_parts
        self.pairs = query_parts * item_parts
        self.merge = merge
        self.dropout = dropout
        eye = torch.eye(dim)
        self.of_query = nn.Parameter(torch.stack([eye + _NOISE * torch.randn(dim, dim) / dim**0.5 for _ in range(query_parts)]))
        self.of_item = nn.Parameter(torch.stack([eye + _NOISE * torch.randn(dim, dim) / dim**0.5 for _ in range(item_parts)])) if item_parts > 1 else None
        if merge == "gates":
            self.query_gate = nn.Linear(dim, self.pairs)
            self.item_gate = nn.Linear(dim, self.pairs)
            self.cross = nn.Parameter(torch.zeros(self.pairs, self.pairs))

    def queries(self, vectors: Tensor) -> Tensor:
        """(n, dim) -> (n, query_parts * dim + pairs)."""
        parts = F.normalize(torch.einsum("nd,pde->npe", vectors, self.of_query), dim=2).flatten(1)
        if self.merge != "gates":
            return parts
        return torch.cat([parts, self.query_gate(F.normalize(vectors, dim=1) * self.dim**0.5)], dim=1)

    def items(self, vectors: Tensor) -> Tensor:
        """(n, dim) -> (n, item_parts * dim + pairs)."""
        if self.of_item is None:
            parts = F.normalize(vectors, dim=1)
        else:
            parts = F.normalize(torch.einsum("nd,pde->npe", vectors, self.of_item), dim=2).flatten(1)
        if self.merge != "gates":
            return parts
        return torch.cat([parts, self.item_gate(F.normalize(vectors, dim=1) * self.dim**0.5)], dim=1)

    def split(self, vectors: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        own = vectors[:, : parts * self.dim]
        return own.reshape(len(vectors), parts, self.dim), vectors[:, parts * self.dim :]

    def scores(self, queries: Tensor, items: Tensor) -> Tensor:
        """(B, W) and (N, W') -> (B, N)."""
        of_items = self.prepared(items)
        out = queries.new_empty(len(queries), len(items))
        step = max(1, 2**21 // (self.pairs * len(items)))
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            out[start : start + step] = self._forward(part, of_items)[0]
        return out

    def prepared(self, items: Tensor) -> tuple[Tensor, Tensor]:
        x, v = self.split(items, self.item_parts)
        return x.permute(1, 2, 0).contiguous(), v.T.contiguous()  # (k_i, d, N), (P, N)

    def _forward(self, part: Tensor, of_items: tuple[Tensor, Tensor], buffers=None):
        """Pairs are (item part, query part)."""
        x, v = of_items
        ki, kq, num, b = self.item_parts, self.query_parts, x.shape[2], len(part)
        q, u = self.split(part, kq)
        q = q.permute(1, 0, 2).reshape(kq * b, self.dim)
        room = part.new_empty(2, self.pairs * b * num) if buffers is None else buffers[:2, : self.pairs * b * num]
        dots = room[0].view(ki, kq * b, num)
        for j in range(ki):
            torch.mm(q, x[j], out=dots[j])
        if self.merge == "max":
            dots = dots.view(self.pairs, b, num)
            score, which = dots.max(0)
            return score, q, dots, which
        flat = dots.view(self.pairs, b * num)
        gates = torch.mm(self.cross * GATE_SCALE, flat, out=room[1].view(self.pairs, b * num)).view(self.pairs, b, num)
        gates.addcmul_(u.T[:, :, None], v[:, None, :])
        gates.sub_(gates.amax(0)).exp_()
        gates.mul_(1 / gates.sum(0))
        dots = dots.view(self.pairs, b, num)
        score = gates[0] * dots[0]
        for p in range(1, self.pairs):
            score.addcmul_(gates[p], dots[p])
        return score, q, dots, gates


class MixtureSoftmax(torch.autograd.Function):
    """Softmax cross-entropy of mixture scores; gradients are computed beside the loss, chunk by chunk."""

    @staticmethod
    def forward(ctx, queries, items, cross, temperature, mixture, positions, log_q, hidden, weights, never=None):
        x, v = mixture.prepared(items)
        P, kq, ki, d = mixture.pairs, mixture.query_parts, mixture.item_parts, mixture.dim
        B, N = len(queries), len(items)
        weights = queries.new_ones(B) if weights is None else weights
        weights = weights / weights.sum()
        step = max(1, min(B, 2**19 // (P * N)))
        gq = torch.empty_like(queries)
        gx, gv = torch.zeros_like(x), torch.zeros_like(v)
        gcross = torch.zeros_like(cross) if cross is not None else None
        loss, gtemp = 0.0, 0.0
        T = float(temperature)
        own = positions[:, None]
        xt = x.permute(0, 2, 1).contiguous()  # (ki, N, d)
        buffers = queries.new_empty(4, P * step * N)
        for start in range(0, B, step):
            part = slice(start, min(B, start + step))
            score, q, dots, gates = mixture._forward(queries[part], (x, v), buffers)
            b = score.shape[0]
            logits = score / T
            if log_q is not None:
                logits -= log_q
            ownl = logits.gather(1, own[part])
            if never is not None:
                logits.masked_fill_(never, -torch.inf)
            if hidden is not None or never is not None:
                if hidden is not None: logits.scatter_(1, hidden[part], -torch.inf)
                logits.scatter_(1, own[part], ownl)
            logp = logits.log_softmax(1)
            w = weights[part, None]
            loss += -(logp.gather(1, own[part]) * w).sum()
            e = logp.exp_()
            e.scatter_add_(1, own[part], e.new_full((b, 1), -1.0))
            e *= w / T
            gtemp += -(e * score).sum() / T
            if mixture.merge == "max":
                dC = torch.zeros_like(dots).scatter_(0, gates[None], e[None])
            else:
                h, dC = (each[: P * b * N].view(P, b, N) for each in buffers[2:])
                torch.sub(dots, score, out=h)
                h *= gates
                h *= e
                torch.mul(gates, e, out=dC)
                hf = h.view(P, b * N)
                dC.view(P, b * N).addmm_(cross.T * GATE_SCALE, hf)
                gcross.addmm_(hf, dots.view(P, b * N).T, alpha=GATE_SCALE)
                u = queries[part, kq * d :]
                gq[part, kq * d :] = torch.bmm(h, v[:, :, None]).squeeze(2).T
                gv += torch.bmm(u.T[:, None, :], h).squeeze(1)
            dC = dC.view(ki, kq * b, N)
            gqi = q.new_zeros(kq * b, d)
            for j in range(ki):
                gqi.addmm_(dC[j], xt[j])
                gx[j].addmm_(q.T, dC[j])
            gq[part, : kq * d] = gqi.view(kq, b, d).permute(1, 0, 2).reshape(b, kq * d)
        gi = torch.empty_like(items)
        gi[:, : ki * d] = gx.permute(2, 0, 1).reshape(N, ki * d)
        if mixture.merge == "gates":
            gi[:, ki * d :] = gv.T
        ctx.save_for_backward(gq, gi, gcross if gcross is not None else torch.zeros(()), torch.as_tensor(gtemp))
        ctx.has_cross = cross is not None
        return loss

    @staticmethod
    def backward(ctx, g):
        gq, gi, gc, gt = ctx.saved_tensors
        return gq * g, gi * g, gc * g if ctx.has_cross else None, gt * g, None, None, None, None, None, None
