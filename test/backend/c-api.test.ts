import { readFileSync } from "node:fs";
import test from "ava";
import { Tensor } from "onnxruntime-common";
import { openDirect } from "#agent/backend/c-api.js";
import { GraphBuilder } from "#common/graph/builder.js";
import { add, gemm } from "#common/graph/ops.js";

const options = { threads: 1, config: {} } as const;
const square = (n: number, value: number): Tensor => new Tensor("float32", new Float32Array(n * n).fill(value), [n, n]);

/** So many products of [n, n] matrices, one after the other. */
function chain(n: number, count: number): Uint8Array {
  const g = new GraphBuilder();
  const x = g.input("x", "float32", [n, n]);
  let y = x;
  for (let i = 0; i < count; i++) y = gemm(g, y, x, { alpha: 1 / n });
  g.output("y", y);
  return g.encode();
}

const residentKiB = (): number => Number(/VmRSS:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))?.[1]);

test("outputs are written where they belong, and nowhere else", async (t) => {
  const size = 24_000_000;
  const g = new GraphBuilder();
  g.output("y", add(g, g.input("x", "float32", [size]), g.scalar(1)));
  const session = openDirect(g.encode(), options, Tensor);
  const data = new Float32Array(size).fill(1);
  const [x, y] = [new Tensor("float32", data, [size]), new Tensor("float32", data, [size])];
  const before = residentKiB();
  for (let i = 0; i < 3; i++) await session.runInto({ x }, { y });
  t.deepEqual([data[0], data[size - 1]], [4, 4], "in place");
  t.true(residentKiB() - before < size / 256, "less than a copy's memory");
  await session.release();
});

test("the process answers while a graph runs", async (t) => {
  const session = openDirect(chain(512, 60), options, Tensor);
  const x = square(512, 1);
  let [ticks, done] = [0, false];
  const running = session.run({ x }).then((results) => {
    done = true;
    return results;
  });
  while (!done) {
    await new Promise((resolve) => setImmediate(resolve));
    ticks++;
  }
  t.true(ticks > 10, `${ticks} turns of the event loop`);
  t.is((await running)["y"]?.data[0], 1);
  await session.release();
});

test("a session is not released under a run, and refuses runs afterwards", async (t) => {
  const session = openDirect(chain(256, 60), options, Tensor);
  const running = session.run({ x: square(256, 1) });
  await session.release();
  t.is((await running)["y"]?.data[0], 1);
  await t.throwsAsync(session.run({ x: square(256, 1) }), { message: /released/ });
  await t.notThrowsAsync(session.release());
});

test("what the runtime refuses is an error with its words, and harms nothing", async (t) => {
  t.throws(() => openDirect(Uint8Array.of(1, 2, 3), options, Tensor), { message: /./ });
  const session = openDirect(chain(4, 1), options, Tensor);
  await t.throwsAsync(session.run({}), { message: "input x is missing" });
  await t.throwsAsync(session.run({ x: square(5, 1) }), { message: /invalid dimensions.*\bx\b/is });
  await t.throwsAsync(session.runInto({ x: square(4, 1) }, { z: square(4, 0) }), { message: /z/ });
  const short = { type: "float32", dims: [4, 4], data: new Float32Array(3) } as unknown as Tensor;
  await t.throwsAsync(session.run({ x: short }));
  t.is((await session.run({ x: square(4, 1) }))["y"]?.data[0], 1);
  await session.release();
});
