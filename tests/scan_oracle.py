"""An independent reading of the memory recurrences: float64 NumPy, one token, one head at a time.

Gradients are derived by hand from the same equations, going back token by token.
"""

from __future__ import annotations

import numpy as np


def memory(q, k, v, log_decay, beta, state, rule, starts=None, begin=None):
    """S_t = A_t + beta_t k_t w_t^T, A_t = diag(a_t) S_{t-1}, y_t = S_t^T q_t.

    w_t is v_t ("hebb") or v_t - A_t^T k_t ("delta"). Returns (y, last S, pull): `pull` takes the
    gradients by y and by the last S, and gives those by each argument that is not None. Where
    `starts` [B, T] is true, S_{t-1} is `begin`, or 0.
    """
    q, k, v, state = (np.asarray(x, np.float64) for x in (q, k, v, state))
    rows, tokens, heads, _ = v.shape
    shared = heads // k.shape[2]
    decay = None if log_decay is None else np.exp(np.asarray(log_decay, np.float64))
    strength = np.ones(v.shape[:3]) if beta is None else np.asarray(beta, np.float64)

    def factor(b, t, h):
        return 1.0 if decay is None else np.reshape(decay[b, t, h], (-1, 1))

    first = np.zeros(state.shape) if begin is None else np.asarray(begin, np.float64)

    def entered(b, t, h):
        anew = starts is not None and starts[b, t]
        return first[b, h] if anew else states[t, b, h]

    y, states = np.zeros(v.shape), np.zeros((tokens + 1, *state.shape))
    states[0] = state
    for b, t, h in np.ndindex(rows, tokens, heads):
        key = k[b, t, h // shared]
        kept = factor(b, t, h) * entered(b, t, h)
        write = v[b, t, h] - (kept.T @ key if rule == "delta" else 0)
        states[t + 1, b, h] = kept + strength[b, t, h] * np.outer(key, write)
        y[b, t, h] = states[t + 1, b, h].T @ q[b, t, h // shared]

    def pull(dy, dlast):
        dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
        dbeta = np.zeros(v.shape[:3])
        dlog = None if decay is None else np.zeros(decay.shape)
        dstate, dbegin = np.array(dlast, np.float64), np.zeros(state.shape)
        for b, t, h in np.ndindex(rows, tokens, heads):
            t = tokens - 1 - t
            group, strong = h // shared, strength[b, t, h]
            key = k[b, t, group]
            a = factor(b, t, h)
            kept = a * entered(b, t, h)
            write = v[b, t, h] - (kept.T @ key if rule == "delta" else 0)
            dq[b, t, group] += states[t + 1, b, h] @ dy[b, t, h]
            ds = dstate[b, h] + np.outer(q[b, t, group], dy[b, t, h])
            dwrite = strong * ds.T @ key
            dk[b, t, group] += strong * ds @ write
            dbeta[b, t, h] = key @ ds @ write
            dv[b, t, h] = dwrite
            if rule == "delta":
                dk[b, t, group] -= kept @ dwrite
                ds = ds - np.outer(key, dwrite)
            if dlog is not None:
                by_channel = np.sum(ds * kept, axis=1)
                dlog[b, t, h] = by_channel if dlog.ndim == 4 else by_channel.sum()
            dstate[b, h] = a * ds
            if starts is not None and starts[b, t]:
                dbegin[b, h] += dstate[b, h]
                dstate[b, h] = 0
        found = [dq, dk, dv, dlog, None if beta is None else dbeta, dstate]
        found.append(None if begin is None else dbegin)
        return tuple(x for x in found if x is not None)

    return y, states[-1], pull


def diagonal(log_decay, write, state, starts=None, begin=None):
    """h_t = a_t h_{t-1} + w_t: (all h, pull), `pull` from their gradients to all arguments'.

    Where `starts` [B, T] is true, h_{t-1} is `begin`, or 0.
    """
    decay, write = np.exp(np.asarray(log_decay, np.float64)), np.asarray(write, np.float64)
    starts = np.zeros(write.shape[:2], bool) if starts is None else starts
    begin = np.zeros(np.shape(state)) if begin is None else np.asarray(begin, np.float64)
    states = [np.asarray(state, np.float64)]
    entered = []
    for t in range(write.shape[1]):
        entered.append(np.array(states[-1]))
        entered[t][starts[:, t]] = begin[starts[:, t]]
        states.append(decay[:, t] * entered[t] + write[:, t])

    def pull(dstates):
        """Of log_decay, write, state and begin."""
        dlog, dwrite, carried = np.zeros(decay.shape), np.zeros(write.shape), 0.0
        dbegin = np.zeros(begin.shape)
        for t in reversed(range(write.shape[1])):
            carried = carried + dstates[:, t]
            dwrite[:, t] = carried
            dlog[:, t] = carried * decay[:, t] * entered[t]
            carried = carried * decay[:, t]
            dbegin[starts[:, t]] += carried[starts[:, t]]
            carried[starts[:, t]] = 0
        return dlog, dwrite, carried, dbegin

    return np.stack(states[1:], axis=1), pull
