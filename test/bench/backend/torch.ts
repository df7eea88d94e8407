import { execFile } from "node:child_process";
import { resolve } from "node:path";
import { promisify } from "node:util";

/** What the peer's script says of one run. */
export interface TorchReport {
  readonly version: string;
  readonly stepMs: number;
  readonly peakBytes: number;
}

const SCRIPT = "../shared/peers/gpt_torch.py";

/** One run of PyTorch on the same model, in a process of its own. */
export async function runTorch(
  python: string,
  model: "small" | "big",
  threads: number,
  steps: number,
): Promise<TorchReport> {
  const flags = { model, threads, steps, runs: 1, warm: 3 };
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const { stdout } = await promisify(execFile)(python, [resolve(SCRIPT), ...args]);
  const said = JSON.parse(stdout) as { torch: string; ms_per_step: number; peak_rss_mb: number };
  return { version: said.torch, stepMs: said.ms_per_step, peakBytes: said.peak_rss_mb * 2 ** 20 };
}
