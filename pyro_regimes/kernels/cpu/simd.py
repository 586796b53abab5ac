"""SIMD vectors of float64 as numba values, which hold the states of a chain in registers.

numba compiles Python loops to scalar code. LLVM does not vectorise it for the few states of a
chain, whose steps depend on one another. These intrinsics are explicit: a :class:`Lanes` is an LLVM
vector of W doubles, which the compiler maps to one or several registers. W is a compile-time
constant: an argument ``width`` is a literal, or any vector of that width.
"""

from __future__ import annotations

from typing import Any, Callable

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default

intrinsic: Any = extending.intrinsic  # as its own annotations do not know what it makes

_DOUBLE = ir.DoubleType()
_INT64 = ir.IntType(64)
_INT32 = ir.IntType(32)


class Lanes(types.Type):
    """The numba type of a vector of ``width`` doubles."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Lanes({width})")


@register_default(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_DOUBLE, fe_type.width))


def _lanes(width: Any) -> Lanes:
    """The type for a width, given as a literal integer or as a vector of that width."""
    return width if isinstance(width, Lanes) else Lanes(width.literal_value)


@intrinsic
def width_of(typingctx: Any, lanes: Any) -> Any:
    """W, a constant to the compiler."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_INT64, lanes.width)

    return types.int64(lanes), generate


def _constant(width: int, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(_DOUBLE, width), [value] * width)


def _splat(builder: Any, scalar: Any, width: int) -> Any:
    one = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined), scalar, ir.Constant(_INT32, 0)
    )
    mask = ir.Constant(ir.VectorType(_INT32, width), [0] * width)
    return builder.shuffle_vector(one, one, mask)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, fused where the processor can."""
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(a.type, [a.type] * 3),
        f"llvm.fmuladd.v{a.type.count}f64",
    )
    return builder.call(function, [a, b, c])


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _load(builder: Any, pointer: Any, width: int) -> Any:
    vector = ir.PointerType(ir.VectorType(_DOUBLE, width))
    return builder.load(builder.bitcast(pointer, vector), align=8)


@intrinsic(prefer_literal=True)
def load(typingctx: Any, array: Any, offset: Any, width: Any) -> Any:
    """``array[offset : offset + width]`` of a flat float64 array."""
    lanes = _lanes(width)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return _load(builder, pointer, lanes.width)

    return lanes(array, types.intp, width), generate


def _first_lanes(builder: Any, count: Any, width: int) -> Any:
    """A mask that is true in the first ``count`` of ``width`` lanes."""
    integers = ir.VectorType(_INT64, width)
    number = ir.Constant(integers, list(range(width)))
    return builder.icmp_signed("<", number, _splat(builder, count, width))


def _masked(builder: Any, name: str, array_type: Any, width: int, result: Any, *args: Any) -> Any:
    """Call LLVM's masked load or store, which does not access memory of false lanes."""
    element = "f32" if array_type.dtype == types.float32 else "f64"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [arg.type for arg in args]),
        f"llvm.masked.{name}.v{width}{element}.p0",
    )
    return builder.call(function, args)


def _vector_of(array_type: Any, width: int) -> Any:
    element = ir.FloatType() if array_type.dtype == types.float32 else _DOUBLE
    return ir.VectorType(element, width)


@intrinsic(prefer_literal=True)
def load_row(
    typingctx: Any, array: Any, offset: Any, count: Any, padding: Any, width: Any
) -> Any:
    """``array[offset : offset + count]`` of float32 or float64, and ``padding`` beyond.

    The offset counts the elements of a contiguous array of any number of dims.
    """
    lanes = _lanes(width)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector_of(array, lanes.width)
        pointer = _pointer(context, builder, array, args[0], args[1])
        mask = _first_lanes(builder, args[2], lanes.width)
        align = ir.Constant(_INT32, 4 if vector.element != _DOUBLE else 8)
        zeros = ir.Constant(vector, None)
        pointer = builder.bitcast(pointer, ir.PointerType(vector))
        row = _masked(
            builder, "load", array, lanes.width, vector, pointer, align, mask, zeros
        )
        if vector.element != _DOUBLE:
            row = builder.fpext(row, ir.VectorType(_DOUBLE, lanes.width))
        return builder.select(mask, row, _splat(builder, args[3], lanes.width))

    return lanes(array, types.intp, types.intp, types.float64, width), generate


@intrinsic
def store_row(typingctx: Any, array: Any, offset: Any, count: Any, lanes: Any) -> Any:
    """``array[offset : offset + count] = lanes[:count]``, rounded to the array's dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector_of(array, lanes.width)
        pointer = _pointer(context, builder, array, args[0], args[1])
        mask = _first_lanes(builder, args[2], lanes.width)
        row = args[3] if vector.element == _DOUBLE else builder.fptrunc(args[3], vector)
        align = ir.Constant(_INT32, 4 if vector.element != _DOUBLE else 8)
        pointer = builder.bitcast(pointer, ir.PointerType(vector))
        _masked(builder, "store", array, lanes.width, ir.VoidType(), row, pointer, align, mask)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), generate


@intrinsic
def store(typingctx: Any, array: Any, offset: Any, lanes: Any) -> Any:
    """``array[offset : offset + width] = lanes``"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        vector = ir.PointerType(ir.VectorType(_DOUBLE, lanes.width))
        builder.store(args[2], builder.bitcast(pointer, vector), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic(prefer_literal=True)
def splat(typingctx: Any, scalar: Any, width: Any) -> Any:
    """A float64 in every lane."""
    lanes = _lanes(width)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], lanes.width)

    return lanes(types.float64, width), generate


def _elementwise(emit: Callable[..., Any], arity: int) -> Callable[..., Any]:
    def typer(*lanes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit(builder, *args)

        return lanes[0](*lanes), generate

    if arity == 1:
        return intrinsic(lambda typingctx, a: typer(a))
    if arity == 2:
        return intrinsic(lambda typingctx, a, b: typer(a, b))
    return intrinsic(lambda typingctx, a, b, c: typer(a, b, c))


#: ``a * b`` lane by lane
multiply = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
#: ``a + b`` lane by lane
add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
#: ``a - b`` lane by lane
subtract = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
#: ``a`` lane by lane, and 0 where it is less than ``b``
unless_less = _elementwise(
    lambda builder, a, b: builder.select(
        builder.fcmp_ordered("<", a, b), ir.Constant(a.type, None), a
    ),
    2,
)
#: ``|a|`` lane by lane
absolute = _elementwise(
    lambda builder, a: builder.bitcast(
        builder.and_(
            builder.bitcast(a, ir.VectorType(_INT64, a.type.count)),
            ir.Constant(ir.VectorType(_INT64, a.type.count), [2**63 - 1] * a.type.count),
        ),
        a.type,
    ),
    1,
)
#: ``a`` where ``b > c``, and 0 elsewhere
where_greater = _elementwise(
    lambda builder, a, b, c: builder.select(
        builder.fcmp_ordered(">", b, c), a, ir.Constant(a.type, None)
    ),
    3,
)
#: ``a * b + c`` lane by lane
multiply_add = _elementwise(_multiply_add, 3)


def _fold(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine all lanes, in pairs of halves."""
    width = vector.type.count
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(
                vector,
                vector,
                ir.Constant(ir.VectorType(_INT32, width), list(range(start, start + width))),
            )
            for start in (0, width)
        )
        vector = combine(low, high)
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


@intrinsic
def total(typingctx: Any, lanes: Any) -> Any:
    """The sum of all lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], builder.fadd)

    return types.float64(lanes), generate


@intrinsic
def largest(typingctx: Any, lanes: Any) -> Any:
    """The largest of all lanes; NaN may be taken for the largest or passed over."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pick(low: Any, high: Any) -> Any:  # the one instruction that processors have for it
            return builder.select(builder.fcmp_ordered(">", low, high), low, high)

        return _fold(builder, args[0], pick)

    return types.float64(lanes), generate


@intrinsic
def any_less(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether ``a < b`` in any lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        less = builder.fcmp_ordered("<", args[0], args[1])
        bits = ir.IntType(a.width)
        return builder.icmp_unsigned("!=", builder.bitcast(less, bits), ir.Constant(bits, 0))

    return types.boolean(a, b), generate


@intrinsic
def matvec(typingctx: Any, lanes: Any, matrix: Any, offset: Any, rows: Any) -> Any:
    """:math:`y_j = \\sum_i x_i M_{ij}` for a W x W matrix, row by row in a flat array.

    Four partial sums avoid waiting for each addition.

    :param rows: any vector of R <= W lanes: i is less than R.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, matrix_value, start, _ = args
        width = lanes.width
        partial: list[Any] = [None] * min(4, rows.width)
        base = _pointer(context, builder, signature.args[1], matrix_value, start)
        for i in range(rows.width):
            mask = ir.Constant(ir.VectorType(_INT32, width), [i] * width)
            state = builder.shuffle_vector(vector, vector, mask)
            row = _load(builder, builder.gep(base, [ir.Constant(_INT64, i * width)]), width)
            held = partial[i % len(partial)]
            partial[i % len(partial)] = (
                builder.fmul(state, row)
                if held is None
                else _multiply_add(builder, state, row, held)
            )
        while len(partial) > 1:
            half = (len(partial) + 1) // 2
            pairs = zip(partial[:half], partial[half:], strict=False)
            odd = partial[len(partial) - half : half]
            partial = [builder.fadd(one, other) for one, other in pairs] + odd
        return partial[0]

    return lanes(lanes, matrix, types.intp, rows), generate


def _add_outers(
    context: Any, builder: Any, array_type: Any, matrix: Any, pairs: list[Any], rows: int
) -> Any:
    """Add outer products of vectors, row by row of a flat W x W array."""
    base = _pointer(context, builder, array_type, matrix, ir.Constant(_INT64, 0))
    width = pairs[0][1].type.count
    for i in range(rows):
        pointer = builder.gep(base, [ir.Constant(_INT64, i * width)])
        row = _load(builder, pointer, width)
        mask = ir.Constant(ir.VectorType(_INT32, width), [i] * width)
        for x, y in pairs:
            row = _multiply_add(builder, builder.shuffle_vector(x, x, mask), y, row)
        builder.store(row, builder.bitcast(pointer, ir.PointerType(row.type)), align=8)
    return context.get_dummy_value()


@intrinsic
def add_outer(typingctx: Any, matrix: Any, lanes: Any, columns: Any, rows: Any) -> Any:
    """:math:`M_{ij} \\mathrel{+}= x_i y_j` for a W x W matrix, row by row in a flat array.

    :param rows: as in :func:`matvec`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type, pairs = signature.args[0], [args[1:3]]
        return _add_outers(context, builder, array_type, args[0], pairs, rows.width)

    return types.void(matrix, lanes, columns, rows), generate


@intrinsic
def add_outers(
    typingctx: Any, matrix: Any, lanes: Any, columns: Any, others: Any, more: Any, rows: Any
) -> Any:
    """:math:`M_{ij} \\mathrel{+}= x_i y_j + u_i v_j`, likewise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type, pairs = signature.args[0], [args[1:3], args[3:5]]
        return _add_outers(context, builder, array_type, args[0], pairs, rows.width)

    return types.void(matrix, lanes, columns, others, more, rows), generate


def _rearranged(builder: Any, vector: Any, places: list[int]) -> Any:
    """The lanes of a vector at these places."""
    mask = ir.Constant(ir.VectorType(_INT32, len(places)), places)
    return builder.shuffle_vector(vector, vector, mask)


def _sum_of(builder: Any, vector: Any, parts: list[list[int]]) -> Any:
    found = _rearranged(builder, vector, parts[0])
    for places in parts[1:]:
        found = builder.fadd(found, _rearranged(builder, vector, places))
    return found


@intrinsic
def fold(typingctx: Any, lanes: Any, few: Any) -> Any:
    """The sum of the parts of a vector, :math:`y_r = \\sum_o x_{o Q + r}`, in pairs of halves.

    :param few: any vector of the Q lanes of the result; their number is a power of two.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, width = args[0], lanes.width
        while width > few.width:
            width //= 2
            halves = [list(range(start, start + width)) for start in (0, width)]
            vector = _sum_of(builder, vector, halves)
        return vector

    return few(lanes, few), generate


@intrinsic
def fold_each(typingctx: Any, lanes: Any, few: Any) -> Any:
    """The sums of K neighbours, :math:`y_r = \\sum_j x_{r K + j}`; see :func:`fold`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = lanes.width // few.width
        parts = [list(range(j, lanes.width, count)) for j in range(count)]
        return _sum_of(builder, args[0], parts)

    return few(lanes, few), generate


@intrinsic
def repeat_all(typingctx: Any, few: Any, lanes: Any) -> Any:
    """A vector several times, :math:`y_{o Q + r} = x_r`.

    :param lanes: any vector of the lanes of the result.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _rearranged(builder, args[0], [s % few.width for s in range(lanes.width)])

    return lanes(few, lanes), generate


@intrinsic
def repeat_each(typingctx: Any, few: Any, lanes: Any) -> Any:
    """Each lane K times, :math:`y_{r K + j} = x_r`; see :func:`repeat_all`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = lanes.width // few.width
        return _rearranged(builder, args[0], [s // count for s in range(lanes.width)])

    return lanes(few, lanes), generate


def _shifted(by: int) -> Callable[..., Any]:
    def typer(typingctx: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            places = [s - by for s in range(lanes.width)]
            outside = lanes.width  # the first lane of zeros
            mask = [place if 0 <= place < outside else outside for place in places]
            kind = ir.Constant(ir.VectorType(_INT32, lanes.width), mask)
            return builder.shuffle_vector(args[0], ir.Constant(args[0].type, None), kind)

        return lanes(lanes), generate

    return intrinsic(typer)


#: Each lane in the place of the next one, :math:`y_j = x_{j-1}`, and 0 in the first.
raised = _shifted(1)
#: Each lane in the place of the one before, :math:`y_i = x_{i+1}`, and 0 in the last.
lowered = _shifted(-1)


@intrinsic(prefer_literal=True)
def rows_of(typingctx: Any, count: Any) -> Any:
    """A vector of so many lanes, or None for 0: what :mod:`.moves` takes for ``rows``."""
    number = count.literal_value
    kind = Lanes(number) if number else types.none

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _constant(number, 0.0) if number else context.get_dummy_value()

    return kind(count), generate


@intrinsic
def repeat_parts(typingctx: Any, parts: Any, part: Any, lanes: Any) -> Any:
    """Each part of K lanes several times, :math:`y_{(o M + m) K + j} = x_{o K + j}`.

    :param part: any vector of K lanes.
    :param lanes: any vector of the lanes of the result.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size, times = part.width, lanes.width // parts.width
        places = [s // (size * times) * size + s % size for s in range(lanes.width)]
        return _rearranged(builder, args[0], places)

    return lanes(parts, part, lanes), generate


@intrinsic
def best_moves(typingctx: Any, score: Any, matrix: Any, origins: Any, offset: Any) -> Any:
    r"""Lanes of :math:`\max_i (x_i + M_{ij})`; the least such i goes to ``origins[offset + j]``.

    The W x W matrix is flat, the back pointers are flat bytes. The candidates are compared in
    pairs, pairs of pairs and so on, which avoids waiting for each comparison.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, matrix_value, origins_value, at = args
        width = score.width
        integers = ir.VectorType(_INT64, width)
        bytes_ = ir.VectorType(ir.IntType(8), width)
        rows = context.make_array(matrix)(context, builder, matrix_value).data
        places = context.make_array(origins)(context, builder, origins_value).data
        found = []
        for i in range(width):
            lane = ir.Constant(ir.VectorType(_INT32, width), [i] * width)
            row = _load(builder, builder.gep(rows, [ir.Constant(_INT64, i * width)]), width)
            move = builder.fadd(builder.shuffle_vector(vector, vector, lane), row)
            # As wide as the numbers, so that one mask selects both.
            found.append((move, ir.Constant(integers, [i] * width)))
        while len(found) > 1:
            pairs = zip(found[::2], found[1::2], strict=True)
            found = []
            for (lower, from_lower), (higher, from_higher) in pairs:
                better = builder.fcmp_ordered(">", higher, lower)
                found.append(
                    (
                        builder.select(better, higher, lower),
                        builder.select(better, from_higher, from_lower),
                    )
                )
        ((best, origin),) = found
        place = builder.bitcast(builder.gep(places, [at]), ir.PointerType(bytes_))
        builder.store(builder.trunc(origin, bytes_), place, align=1)
        return best

    return score(score, matrix, origins, types.intp), generate


_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # its low 32 bits are 0: times an integer it is exact
_LN2_LOW = 1.90821492927058770002e-10
_MAGIC = 6755399441055744.0  # 1.5 * 2**52: added to a float64 it rounds that to an integer
_LEAST = -708.0  # below, the result is 0 instead of a denormal number
_INVERSE_FACTORIALS = [1.0]
for _n in range(1, 14):
    _INVERSE_FACTORIALS.append(_INVERSE_FACTORIALS[-1] / _n)


def _exp(builder: Any, x: Any) -> Any:
    width = x.type.count
    integers = ir.VectorType(_INT64, width)
    shifted = _multiply_add(builder, x, _constant(width, _LOG2_E), _constant(width, _MAGIC))
    n = builder.fsub(shifted, _constant(width, _MAGIC))
    r = _multiply_add(builder, n, _constant(width, -_LN2_HIGH), x)
    r = _multiply_add(builder, n, _constant(width, -_LN2_LOW), r)
    series = _constant(width, _INVERSE_FACTORIALS[-1])
    for coefficient in _INVERSE_FACTORIALS[-2::-1]:
        series = _multiply_add(builder, series, r, _constant(width, coefficient))
    exponent = builder.shl(
        builder.bitcast(shifted, integers), ir.Constant(integers, [52] * width)
    )
    scaled = builder.add(builder.bitcast(series, integers), exponent)
    result = builder.bitcast(scaled, x.type)
    low = builder.fcmp_ordered("<", x, _constant(width, _LEAST))
    result = builder.select(low, _constant(width, 0.0), result)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)


#: :math:`e^x` lane by lane for :math:`x \\le 700`, to one unit in the last place; 0 below -708.
#: With :math:`n = \\mathrm{round}(x \\log_2 e)` it is :math:`2^n e^{x - n \\log 2}`, the second
#: factor by its Taylor series to degree 13 (Cody and Waite 1980).
exp = _elementwise(_exp, 1)
