import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels import project

SIZES = {"B": 2, "T": 5, "D": 3, "N": 4, "H": 2, "F": 9}
EQUATIONS = ["BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF", "BTF,FD->BTD"]


def draw(letters, rng, dtype=np.float32):
    return jnp.asarray(rng.normal(size=[SIZES[c] for c in letters]), dtype)


def operands(equation, dtype=np.float32):
    inputs, product = equation.split("->")
    rng = np.random.default_rng(0)
    x, weight = (draw(letters, rng, dtype) for letters in inputs.split(","))
    return x, weight, draw(product, rng, dtype)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_product_and_gradients_are_those_of_float64_loops(equation):
    x, weight, cotangent = operands(equation)
    out, vjp = jax.vjp(lambda x, w: project(equation, x, w), x, weight)
    inputs, product = equation.split("->")
    left, right = inputs.split(",")
    expected = {name: np.zeros(a.shape) for name, a in (("out", out), ("x", x), ("w", weight))}
    letters = sorted(set(left + right))
    for index in np.ndindex(*(SIZES[c] for c in letters)):
        at = dict(zip(letters, index, strict=True))
        i, j, k = (tuple(at[c] for c in term) for term in (left, right, product))
        a, b, g = (float(v) for v in (x[i], weight[j], cotangent[k]))
        expected["out"][k] += a * b
        expected["x"][i] += b * g
        expected["w"][j] += a * g
    np.testing.assert_allclose(out, expected["out"], rtol=2e-5, atol=2e-6)
    for got, want in zip(vjp(cotangent), (expected["x"], expected["w"]), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_larger_operand_is_read_as_it_lies(equation):
    """The first operand of the weight's gradient, the one that is transposed, is the smaller."""
    x, weight, cotangent = operands(equation)

    def of_weight(x, weight, cotangent):
        return jax.vjp(lambda w: project(equation, x, w), weight)[1](cotangent)[0]

    products = [
        eqn for eqn in jax.make_jaxpr(of_weight)(x, weight, cotangent).jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]  # fmt: skip
    # The rows (B and T) are summed over in the gradient of the weight only.
    sums = [e for e in products if len(e.params["dimension_numbers"][0][0]) == 2 and
            e.invars[0].aval.shape[:2] == e.invars[1].aval.shape[:2] == (2, 5)]  # fmt: skip
    assert len(sums) == 1
    first, second = (np.prod(v.aval.shape) for v in sums[0].invars)
    assert first <= second


def test_bfloat16_gradients_keep_their_types():
    x, weight, cotangent = operands("BTD,DF->BTF", jnp.bfloat16)
    out, vjp = jax.vjp(lambda x, w: project("BTD,DF->BTF", x, w), x, weight)
    assert [a.dtype for a in (out, *vjp(cotangent))] == [jnp.bfloat16] * 3
