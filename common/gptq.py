"""Hessian-aware rounding of a matrix: GPTQ (Frantar et al., arXiv:2210.17323).

H = X^T X of a matrix's inputs X (tokens, columns): the errors e = w - q * step of a row cost e H e^T in its outputs. If
H = R R^T, R upper triangular, that is the sum over k of (R_kk e_k + sum_j<k R_jk e_j)^2: column k is rounded from w_k +
sum_j<k e_j R_jk / R_kk. This is the paper's update, whose factor of H^-1 is R^-1.
"""
import numpy as np

BLOCK = 128  # columns whose errors reach the later ones in one product


def factor(products):
    """(columns by falling diagonal, R_jk / R_kk in row k and column j) of H, float64. A dead input (0 in H), or all if
    H is not finite, is rounded by itself."""
    mean = np.abs(products.diagonal()).mean()
    if not 0 < mean < np.inf:
        products, mean = np.eye(len(products)), 1.0
    order = np.argsort(-np.float32(products.diagonal() / mean), kind="stable")  # noise orders no equals
    damping = 0.01 * mean
    while True:
        backwards = products[np.ix_(order[::-1], order[::-1])]
        backwards.flat[::len(order) + 1] += damping
        try:
            lower = np.linalg.cholesky(backwards)
            return order, np.ascontiguousarray((lower / lower.diagonal()).T[::-1, ::-1])
        except np.linalg.LinAlgError:  # rounding errors
            damping *= 10


def round_columns(weight, step, top, factor):
    """Codes from -top to top, float32 (rows, columns), of a float32 matrix; step: float32 (rows,)."""
    order, spread = factor
    error = weight.T[order].astype(np.float64)  # a column is a row in memory
    codes = np.empty_like(weight)
    for first in range(0, len(order), BLOCK):
        block = slice(first, first + BLOCK)
        aims = error[block] + spread[block, :first] @ error[:first]
        for k, aim in enumerate(aims, first):
            exact = aim + spread[k, first:k] @ error[first:k]
            code = np.clip(np.rint(exact / step), -top, top)
            error[k] -= code * step
            codes[:, order[k]] = code
    return codes
