// Loaded in front of a process of the run (node --import): moves its Date by the milliseconds in a file, which may change
// at any time. Timers and performance.now() stay as they are, as the monotonic clock does when a clock is set.
import { readFileSync } from "node:fs";
import { join } from "node:path";

const CHECK_MS = 50;
const folder = process.env["SHOAL_CHAOS_CLOCKS"];
const nameAt = process.argv.indexOf("--name");
const self = process.env["SHOAL_REPLICA"] ?? (nameAt < 0 ? undefined : process.argv[nameAt + 1]);

if (folder !== undefined && self !== undefined) {
  const file = join(folder, self);
  const RealDate = Date;
  let shiftMs = 0;
  let checkedAtMs = -Infinity;
  const now = (): number => {
    if (performance.now() - checkedAtMs > CHECK_MS) {
      checkedAtMs = performance.now();
      try {
        shiftMs = Number(readFileSync(file, "utf8"));
      } catch {
        // No file, no shift.
        shiftMs = 0;
      }
    }
    return RealDate.now() + shiftMs;
  };
  globalThis.Date = new Proxy(RealDate, {
    apply: () => new RealDate(now()).toString(),
    construct: (target, args: unknown[], newTarget): Date =>
      Reflect.construct(target, args.length === 0 ? [now()] : args, newTarget) as Date,
    get: (target, key): unknown => (key === "now" ? now : Reflect.get(target, key)),
  });
}
