"""Common mistakes: each error names the call, the shapes or values, the user's own line, and what to do instead."""

from __future__ import annotations

import numpy as np
import pytest

import fgrad
import fgrad.numpy as fnp
from fgrad import random

X = fnp.arange(3) * 1.0
M = fnp.ones((2, 3))
MISTAKES = {}


def mistake(kind, *texts):
    """Register a mistake: the error is a `kind`, contains `texts`, and names the line below the function's `def`."""

    def add(f):
        MISTAKES[f.__name__] = (f, kind, texts)
        return f

    return add


# ------------------------------------------------------------------------------------------------ shapes and dtypes


@mistake(TypeError, "matmul", "float32[2,3]", "x @ y.mT")
def matrix_product():
    return M @ M


@mistake(ValueError, "matmul", "float32[2,3]", "x @ y.mT")
def matrix_product_under_jit():
    return fgrad.jit(lambda a, b: a @ b)(M, M)


@mistake(ValueError, "add", "(2, 3) and (2, 4)", "aligned from the right")
def broadcasting():
    return M + fnp.ones((2, 4))


@mistake(ValueError, "concatenate", "(2, 3) and (3, 4)", "all axes but the joined one")
def concatenation():
    return fnp.concatenate([M, fnp.ones((3, 4))])


@mistake(ValueError, "reshape", "float32[2,3] has 6 elements", "-1")
def reshaping():
    return M.reshape(4, 2)


@mistake(ValueError, "sum", "axis 2", "from -2 to 1")
def axis_out_of_bounds():
    return M.sum(axis=2)


@mistake(IndexError, "x[index]", "index 5", "axis 1 with size 3", "(2, 3)")
def index_out_of_bounds():
    return M[0, 5]


@mistake(IndexError, "float 1.5 is not an index", "use integers")
def index_of_floats():
    return M[1.5]


@mistake(TypeError, "sin", "str 'a'", "pass an array")
def not_an_array():
    return fnp.sin("a")


@mistake(TypeError, "cos", "dict", "fgrad.tree.map")
def pytree_to_an_array_function():
    return fnp.cos({"a": X})


@mistake(TypeError, "bitwise_and", "float32[3]", "(x > 0) & (y > 0)")
def and_of_floats():
    return X & 1


@mistake(ValueError, "bool", "bool[3] has 3 elements", "x.any() or x.all()")
def truth_of_many():
    return 1 if X > 0 else 2


@mistake(TypeError, "float", "float32[3] has 3 elements", "x.sum()")
def float_of_many():
    return float(X)


@mistake(ValueError, "item", "float32[3]", "x.tolist()")
def item_of_many():
    return X.item()


@mistake(TypeError, "dtype", "foo")
def unknown_dtype():
    return fnp.zeros(3, "foo")


# ------------------------------------------------------------------------------------------------ immutability


@mistake(TypeError, "x[index] = value", "immutable", "x.at[index].set(value)")
def item_assignment():
    X[0] = 1.0


@mistake(TypeError, "hash", "not hashable", "tobytes()")
def array_as_a_key():
    return {X: 1}


@mistake(AttributeError, "Array.add_", "immutable", "x.at[index].set(value)")
def in_place_method():
    return X.add_(1)


@mistake(AttributeError, "backward", "fgrad.grad(loss)(params)")
def backward_method():
    return X.sum().backward()


@mistake(AttributeError, "detach", "fgrad.stop_gradient(x)")
def detach_method():
    return fgrad.grad(lambda x: x.detach().sum())(X)


@mistake(AttributeError, "unsqueeze", "expand_dims")
def unsqueeze_method():
    return X.unsqueeze(0)


# ------------------------------------------------------------------------------------------------ tracing


@mistake(TypeError, "bool(tracer)", "jit of <lambda>", "fgrad.cond", "static_argnums", "leave out jit")
def if_under_jit():
    return fgrad.jit(lambda x: x if x.sum() > 0 else -x)(X)


@mistake(TypeError, "bool(tracer)", "vmap", "fgrad.numpy.where")
def if_under_vmap():
    return fgrad.vmap(lambda x: x if x > 0 else -x)(X)


@mistake(TypeError, "index(tracer)", "int64[]", "static")
def shape_from_a_traced_value():
    return fgrad.jit(lambda n: fnp.zeros(n))(3)


@mistake(TypeError, "index(tracer)", "int64[]", "static")
def range_of_a_traced_value():
    return fgrad.jit(lambda n: [i for i in range(n)])(3)


@mistake(TypeError, "float(tracer)", "float32[]", "return it from the function")
def float_under_jit():
    return fgrad.jit(lambda x: float(x.sum()))(X)


@mistake(TypeError, "tracer.item()", "float32[]", "return it from the function")
def item_under_jit():
    return fgrad.jit(lambda x: x.sum().item())(X)


@mistake(TypeError, "numpy.sin", "float32[3]", "call fgrad.numpy.sin")
def numpy_function_of_a_tracer():
    return fgrad.jit(lambda x: np.sin(x))(X)


@mistake(TypeError, "numpy.mean", "float32[3]", "call fgrad.numpy.mean")
def numpy_function_under_grad():
    return fgrad.grad(lambda x: np.mean(x))(X)


@mistake(TypeError, "np.asarray(tracer)", "float32[3]", "fgrad.numpy function of the same name")
def asarray_under_jit():
    return fgrad.jit(lambda x: np.asarray(x))(X)


@mistake(ValueError, "x[index]", "slice(None, None, 0)", "axis 0", "no step of 0")
def slice_with_a_step_of_zero():
    return X[::0]


@mistake(TypeError, "x[index]", "slice(1.0, None, None)", "use integers")
def slice_from_a_float():
    return X[1.0:]


@mistake(TypeError, "sin: ", "lose its mask", "x.filled(value)")
def masked_array():
    return fnp.sin(np.ma.array([1.0, 2.0], mask=[False, True]))


@mistake(TypeError, "array: dtype <U1", "bool, (u)int8-64")
def array_of_strings():
    return fnp.array(["a"])


@mistake(TypeError, "x[mask]", "bool[3]", "where(mask, x, other)")
def boolean_mask_under_jit():
    return fgrad.jit(lambda x: x[x > 0])(X)


@mistake(TypeError, "jit of <lambda>", "str 'relu'", "static_argnames")
def string_argument():
    return fgrad.jit(lambda x, act: x)(X, "relu")


@mistake(TypeError, "jit of <lambda>", "must be hashable, got list [1]", "tuples instead of lists")
def unhashable_static_argument():
    return fgrad.jit(lambda x, n: x, static_argnums=1)(X, [1])


@mistake(ValueError, "jit of <lambda>", "static_argnames", "'m'", "(x, n)")
def static_name_that_is_no_parameter():
    return fgrad.jit(lambda x, n: x, static_argnames="m")


@mistake(ValueError, "jit of <lambda>", "static_argnums", "position 2", "(x, n)")
def static_position_that_is_no_parameter():
    return fgrad.jit(lambda x, n: x, static_argnums=2)


@mistake(ValueError, "jit of <lambda>", "donate", "position -3", "(x, n)")
def donated_position_that_is_no_parameter():
    return fgrad.jit(lambda x, n: x, donate=(0, -3))


@mistake(TypeError, "jit", "expected a function, got float32[3]")
def jit_of_a_value():
    return fgrad.jit(X * 2)


# ------------------------------------------------------------------------------------------------ derivatives


@mistake(TypeError, "grad of <lambda>", "returned float32[3]", ".sum() or .mean()", "jacrev")
def gradient_of_a_vector():
    return fgrad.grad(lambda x: x * 2)(X)


@mistake(TypeError, "grad of <lambda>", "returned float32[], float32[3]", "has_aux=True")
def gradient_of_a_pair():
    return fgrad.grad(lambda x: (x.sum(), x))(X)


@mistake(TypeError, "grad of <lambda>", "has_aux=True needs the function to return (value, aux)")
def aux_without_a_pair():
    return fgrad.grad(lambda x: x.sum(), has_aux=True)(X)


@mistake(TypeError, "grad of <lambda>", "int64[]", "x.astype('float32')")
def gradient_of_an_integer():
    return fgrad.grad(lambda x: x * 2.0)(3)


@mistake(ValueError, "grad of <lambda>", "argnums=1 with 1 positional", "by position")
def argnums_beyond_the_arguments():
    return fgrad.grad(lambda x, y=1.0: x * y, argnums=1)(2.0)


@mistake(TypeError, "pullback", "cotangent 0 is float32[2,3], the output is float32[3]")
def wrong_cotangent():
    return fgrad.vjp(lambda x: x * 2, X)[1](M)


@mistake(TypeError, "jvp", "tangent 0 is float32[2,3], the primal is float32[3]")
def wrong_tangent():
    return fgrad.jvp(lambda x: x * 2, (X,), (M,))


@mistake(TypeError, "jvp", "two tuples", "jvp(f, (x,), (t,))")
def primals_not_in_a_tuple():
    return fgrad.jvp(lambda x: x * 2, X, X)


# ------------------------------------------------------------------------------------------------ vmap, control flow


@mistake(TypeError, "vmap", "differ in length: 3 and 2", "float32[2,3]")
def batches_of_two_lengths():
    return fgrad.vmap(lambda x, m: x * m)(X, M)


@mistake(ValueError, "vmap", "in_axes has 1 entries for 2", "None where it is not mapped")
def too_few_axes():
    return fgrad.vmap(lambda x, y: x, in_axes=(0,))(X, X)


@mistake(ValueError, "vmap", "in_axes=0", "float32[]", "None to not map it")
def mapping_a_scalar():
    return fgrad.vmap(lambda x: x)(fnp.asarray(1.0))


@mistake(ValueError, "vmap", "no argument is mapped", "axis_size")
def nothing_mapped():
    return fgrad.vmap(lambda x: x, in_axes=None)(X)


@mistake(TypeError, "cond", "bool[3]", "fgrad.numpy.where")
def condition_of_many():
    return fgrad.cond(X > 0, lambda: 1.0, lambda: 2.0)


@mistake(TypeError, "cond/switch", "float32[3]", "int64[]", "same structure, shapes and dtypes")
def branches_of_two_types():
    return fgrad.cond(True, lambda x: x, lambda x: 1, X)


@mistake(TypeError, "while_loop", "one boolean scalar", "float32[3]", "x")
def condition_not_boolean():
    return fgrad.while_loop(lambda c: c, lambda c: c * 2, X)


@mistake(TypeError, "while_loop", "float64[3]", "began as float32[3]", ".astype")
def carry_changes_dtype():
    return fgrad.while_loop(lambda c: c.sum() < 9, lambda c: c.astype("float64"), X)


@mistake(TypeError, "scan", "must return (carry, y)", "(carry, None)")
def scan_without_a_pair():
    return fgrad.scan(lambda c, x: c, 0.0, X)


@mistake(ValueError, "scan", "float32[3], float32[2,3]", "one length")
def scan_of_two_lengths():
    return fgrad.scan(lambda c, x: (c, None), 0.0, (X, M))


@mistake(TypeError, "scan", "structure (*, *), the initial carry has *")
def carry_changes_structure():
    return fgrad.scan(lambda c, x: ((c, c), None), 0.0, X)


# ------------------------------------------------------------------------------------------------ random, arrays gone


@mistake(TypeError, "normal", "expected a key, got int 0", "fgrad.random.key(0)")
def seed_instead_of_a_key():
    return random.normal(0, (3,))


def donated():
    x = fgrad.jit(lambda: fnp.ones(3))()
    fgrad.jit(lambda x: x + 1, donate=0)(x)
    return x


@mistake(ValueError, "donated to a jitted function", "use the array that the function returned")
def use_after_donation(x=None):
    return (x if x is not None else donated()) + 1


@mistake(TypeError, "asarray", "dtype object is not supported", "float32")
def array_of_objects():
    return fnp.asarray(np.array([None, 1], object))


# ------------------------------------------------------------------------------------------------ options


@mistake(TypeError, "jit", "donate is str 'params'", "donate=0")
def donate_by_name():
    return fgrad.jit(lambda params: params, donate="params")


@mistake(TypeError, "jit", "donate is NoneType None", "donate=0")
def donate_none():
    return fgrad.jit(lambda x: x, donate=None)


@mistake(TypeError, "jit", "static_argnames is int 0", "a name")
def static_name_that_is_a_position():
    return fgrad.jit(lambda x: x, static_argnames=0)


@mistake(TypeError, "winograd", "allowed is str 'off'", "True or False")
def winograd_switched_by_a_word():
    return fgrad.winograd("off").__enter__()


@mistake(ValueError, "profile", "repeat=0", "positive")
def profile_of_no_calls():
    return fgrad.profile(lambda x: x * 2, repeat=0)(X)


@mistake(ValueError, "profile", "budget=-1", "seconds")
def profile_in_negative_time():
    return fgrad.profile(lambda x: x * 2, budget=-1)(X)


@mistake(ValueError, "ShapeDtype", "(3, -1) has a negative size", "ShapeDtype((3, 4), 'float32')")
def shape_with_a_size_to_infer():
    return fgrad.ShapeDtype((3, -1), "float32")


@mistake(TypeError, "ShapeDtype", "shape is int 3", "a tuple of sizes")
def shape_that_is_a_number():
    return fgrad.ShapeDtype(3, "float32")


def test_at_least_thirty_mistakes():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name):
    f, kind, texts = MISTAKES[name]
    with pytest.raises(kind) as e:
        f()
    said = str(e.value)
    if kind is not AttributeError:
        assert isinstance(e.value, fgrad.FgradError)
    for text in texts:
        assert text in said, said
    line = f.__code__.co_firstlineno + 2  # decorator, def, then the statement
    assert f"test_errors.py:{line}" in said, said


def test_every_error_says_what_to_do():
    without = []
    for name, (f, kind, _) in MISTAKES.items():
        with pytest.raises(kind) as e:
            f()
        if "\n  fix: " not in str(e.value):
            without.append(name)
    assert without == []


def test_errors_are_caught_as_fgrads_and_as_pythons():
    for kind in (fgrad.FgradError, ValueError, TypeError):
        with pytest.raises(kind):
            M + fnp.ones((2, 4))


def test_the_line_is_the_users_also_inside_derivatives():
    """Errors found while a transform works name the line of the equation, not that of the transform."""

    def f(x):
        y = fgrad.while_loop(lambda c: c < 10, lambda c: c * 2, x)
        return y * 2

    with pytest.raises(fgrad.FgradError) as e:
        fgrad.grad(f)(1.0)
    assert f"test_errors.py:{f.__code__.co_firstlineno + 1}" in str(e.value)


def test_unknown_attributes_are_plain_attribute_errors():
    assert not hasattr(X, "no_such_thing")
    with pytest.raises(AttributeError, match="no attribute 'shapee'"):
        X.shapee


@pytest.mark.parametrize("other", [np.float32([1, 2]), np.float32([1])])
def test_a_dtype_that_an_operation_lacks_is_our_error_for_equal_and_other_shapes(other):
    with pytest.raises(fgrad.FgradTypeError, match="bitwise_and: needs integers or bools"):
        fnp.bitwise_and(np.float32([1, 2]), other)
