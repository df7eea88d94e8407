import test from "ava";
import fc from "fast-check";
import { InvariantError } from "#common/tensor/invariant.js";
import { gather, scatter, stretchedLength } from "#common/tensor/stretches.js";

/** A vector and stretches of it that do not overlap. */
const cut = fc.array(fc.tuple(fc.nat(3), fc.nat(3)), { maxLength: 8 }).map((parts) => {
  let start = 0;
  const stretches = parts.map(([gap, length]) => {
    const stretch = { start: start + gap, length };
    start = stretch.start + length;
    return stretch;
  });
  return { stretches, flat: Float32Array.from({ length: start + 2 }, (_, i) => i + 1) };
});

test("what is gathered goes back to where it was, and nowhere else", (t) => {
  fc.assert(
    fc.property(cut, ({ stretches, flat }) => {
      const part = gather(flat, stretches);
      const wanted = stretches.flatMap(({ start, length }) => [...flat.subarray(start, start + length)]);
      t.deepEqual([...part], wanted);
      t.is(stretchedLength(stretches), part.length);
      const target = new Float32Array(flat.length);
      scatter(part, stretches, target);
      t.deepEqual(
        target,
        flat.map((value) => (wanted.includes(value) ? value : 0)),
      );
    }),
  );
});

test("stretches outside of the vector, and values that do not fill them, are broken invariants", (t) => {
  const flat = new Float32Array(4);
  for (const stretch of [
    { start: 3, length: 2 },
    { start: -1, length: 1 },
    { start: 1, length: -1 },
  ]) {
    t.throws(() => gather(flat, [stretch]), { instanceOf: InvariantError });
  }
  t.throws(() => scatter(new Float32Array(2), [{ start: 3, length: 2 }], flat), { instanceOf: InvariantError });
  t.throws(() => scatter(new Float32Array(1), [{ start: 0, length: 2 }], flat), { instanceOf: InvariantError });
});
