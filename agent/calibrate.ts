import type { Clock } from "#common/ports/clock.js";
import type { Backend } from "./backend/backend.js";
import { writeAtomically, type Disk } from "./disk.js";

/** What was measured, and under which conditions it holds. */
export interface Calibration {
  readonly backend: string;
  readonly threads: number;
  /** Unthrottled. */
  readonly gflops: number;
  readonly measuredAtMs: number;
}

/** Sizes of square products like those of small and middle layers; the mean of their times counts. */
const SIZES = [128, 256, 512];
const SECONDS_PER_SIZE = 0.1;
/** A measurement is taken again after a week: machines change, and one of a busy moment should not stay. */
const VALID_MS = 7 * 86_400_000;
const FILE = "calibration.json";

function parseCalibration(bytes: Uint8Array | undefined): Calibration | undefined {
  if (bytes === undefined) return undefined;
  try {
    const value = JSON.parse(new TextDecoder().decode(bytes)) as Partial<Calibration> | null;
    const { backend, threads, gflops, measuredAtMs } = value ?? {};
    if (typeof backend !== "string" || typeof threads !== "number") return undefined;
    if (typeof gflops !== "number" || !(gflops > 0) || typeof measuredAtMs !== "number") return undefined;
    return { backend, threads, gflops, measuredAtMs };
  } catch {
    return undefined;
  }
}

/** Achieved GFLOP/s over the layer shapes: the harmonic mean, as for equal work in each. Takes about 0.3 s. */
async function measure(backend: Backend): Promise<number> {
  let inverse = 0;
  for (const n of SIZES) inverse += 1 / (await backend.matmulGflops(n, SECONDS_PER_SIZE));
  return SIZES.length / inverse;
}

/** This device's unthrottled speed, from the state folder if it was measured lately with the same backend and threads. */
export async function calibrate(
  backend: Backend,
  threads: number,
  { disk, folder, clock }: { disk: Disk; folder: string; clock: Clock },
): Promise<Calibration> {
  const known = parseCalibration(await disk.read(`${folder}/${FILE}`));
  const nowMs = clock.nowMs();
  const fresh = known !== undefined && Math.abs(nowMs - known.measuredAtMs) < VALID_MS;
  if (fresh && known.backend === backend.name && known.threads === threads) return known;
  const calibration = { backend: backend.name, threads, gflops: await measure(backend), measuredAtMs: nowMs };
  const bytes = new TextEncoder().encode(`${JSON.stringify(calibration)}\n`);
  await writeAtomically(disk, folder, FILE, [bytes]);
  return calibration;
}
