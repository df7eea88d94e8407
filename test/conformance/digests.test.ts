import test from "ava";
import fc from "fast-check";
import { spawnSync } from "node:child_process";
import { DigestThread } from "#common/adapters/digest-thread.js";
import { inlineDigests } from "#common/runtime/inline-digests.js";
import { sha256Digest } from "#common/tensor/digest.js";

const LARGE = 1024 ** 2;
const thread = new DigestThread();
test.after.always(() => thread.close());

/** Bytes in memory of their own or in shared one, at an odd place. */
function bytesOf(size: number, value: number, isShared: boolean): Uint8Array {
  const memory = isShared ? new SharedArrayBuffer(size + 3) : new ArrayBuffer(size + 3);
  return new Uint8Array(memory, 3).fill(value);
}

for (const [name, digests] of [
  ["inline", inlineDigests],
  ["thread", thread],
] as const) {
  test(`${name}: digests of several streams at once are those of all their parts, whatever is dropped beside`, async (t) => {
    const parts = fc.array(fc.tuple(fc.nat(5000), fc.nat(255), fc.boolean()), { maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(
        fc.array(parts, { minLength: 1, maxLength: 5 }),
        fc.constantFrom(10, LARGE),
        async (all, size) => {
          const taken = await Promise.all(
            all.map(async (some) => {
              const task = digests.open(size);
              const dropped = digests.open(size);
              for (const [length, value, isShared] of some) {
                const bytes = bytesOf(length, value, isShared);
                const added = task.add(bytes);
                void dropped.add(bytes);
                await added;
                // Read by now: whoever owns it writes over it.
                bytes.fill(value + 1);
              }
              dropped.drop();
              const digest = await task.finish();
              task.drop();
              return digest;
            }),
          );
          const expected = all.map((some) =>
            sha256Digest(...some.map(([length, value]) => bytesOf(length, value, false))),
          );
          t.deepEqual(taken, expected);
        },
      ),
      { numRuns: 40 },
    );
  });
}

test("a thread that is gone fails what it was asked, and the next digest has a new one", async (t) => {
  const own = new DigestThread();
  const task = own.open(LARGE);
  const bytes = bytesOf(LARGE, 7, true);
  await task.add(bytes);
  const waiting = task.add(bytes);
  await Promise.all([own.close(), t.throwsAsync(waiting, { code: "THREAD_DIED" })]);
  await t.throwsAsync(task.finish(), { code: "THREAD_DIED" });
  t.notThrows(() => task.drop());
  const next = own.open(LARGE);
  await next.add(bytes);
  t.is(await next.finish(), sha256Digest(bytes));
  await own.close();
});

test("a process waits for a digest and for no idle thread", (t) => {
  const script = `
    const { DigestThread } = await import("#common/adapters/digest-thread.js");
    const task = new DigestThread().open(${LARGE});
    await task.add(new Uint8Array(10));
    console.log(await task.finish());`;
  const { stdout, status } = spawnSync(process.execPath, ["--input-type=module", "-e", script], { timeout: 20_000 });
  t.is(stdout.toString().trim(), sha256Digest(new Uint8Array(10)));
  t.is(status, 0);
});
