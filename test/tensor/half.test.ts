import test from "ava";
import fc from "fast-check";
import { fromHalf, HALF_MAX, toHalf, toHalfCeil } from "#common/tensor/half.js";

/** All finite non-negative half-precision numbers in order, by the standard's definition. */
const table = Array.from({ length: 0x7c00 }, (_, bits) => {
  const exponent = bits >> 10;
  const fraction = (bits & 0x3ff) / 1024;
  return exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15);
});

test("every finite half-precision number goes through and back", (t) => {
  for (let bits = 0; bits < 0x7c00; bits++) {
    if (fromHalf(bits) !== table[bits] || toHalf(fromHalf(bits)) !== bits) t.fail(`bits ${bits}`);
    if (toHalf(-fromHalf(bits)) !== (bits | 0x8000) && bits !== 0) t.fail(`bits -${bits}`);
    if (toHalfCeil(fromHalf(bits)) !== bits) t.fail(`ceil of bits ${bits}`);
  }
  t.is(table.at(-1), HALF_MAX);
});

test("ties between neighbours go to the even one, anything beside the tie to the nearer one", (t) => {
  for (let bits = 0; bits + 1 < table.length; bits++) {
    const low = table[bits] as number;
    const high = table[bits + 1] as number;
    const middle = (low + high) / 2;
    const even = bits % 2 === 0 ? bits : bits + 1;
    const nudge = middle * 2 ** -52;
    if (toHalf(middle) !== even) t.fail(`tie above bits ${bits}`);
    if (toHalf(middle - nudge) !== bits || toHalf(middle + nudge) !== bits + 1) t.fail(`beside the tie above ${bits}`);
    if (toHalfCeil(middle) !== bits + 1 || toHalfCeil(low + nudge) !== bits + 1) t.fail(`ceil above bits ${bits}`);
  }
  t.pass();
});

test("special values and overflow", (t) => {
  t.is(toHalf(NaN), 0x7e00);
  t.is(toHalf(Infinity), 0x7c00);
  t.is(toHalf(-Infinity), 0xfc00);
  t.is(toHalf(65519.99), 0x7bff);
  t.is(toHalf(65520), 0x7c00);
  t.is(toHalf(1e300), 0x7c00);
  t.is(toHalf(2 ** -25), 0);
  t.is(toHalf(2 ** -25 * (1 + 2 ** -52)), 1);
  t.is(toHalf(5e-324), 0);
  t.true(Object.is(fromHalf(0x8000), -0));
  t.is(fromHalf(0x7c00), Infinity);
  t.is(fromHalf(0xfc00), -Infinity);
  t.is(fromHalf(0x7c01), NaN);
  t.is(toHalfCeil(0), 0);
  t.is(toHalfCeil(5e-324), 1);
  t.is(toHalfCeil(1e9), 0x7bff);
});

test("rounding is monotone", (t) => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 65519, noNaN: true }),
      fc.double({ min: 0, max: 65519, noNaN: true }),
      (a, b) => {
        const [low, high] = a <= b ? [a, b] : [b, a];
        return toHalf(low) <= toHalf(high) && fromHalf(toHalfCeil(high)) >= Math.min(high, HALF_MAX);
      },
    ),
  );
  t.pass();
});
