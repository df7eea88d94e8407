import { loadavg } from "node:os";
import { trainModel } from "#common/graph/train.js";
import { type BackendCase, CASES } from "./backend/cases.js";
import { productFlops, productsOf } from "./backend/products.js";
import { runTorch, type TorchReport } from "./backend/torch.js";
import { Worker } from "./backend/worker.js";
import { type BenchResult, report } from "./report.js";

export interface BackendBenchOptions {
  readonly json?: string | undefined;
  /** A Python that has PyTorch. */
  readonly torch?: string | undefined;
  /** One thread count, few rounds, and only what is small. */
  readonly quick: boolean;
  readonly strict: boolean;
}

const WARM_UP = 2;
const QUICK_ROUNDS = 3;
/** Times PyTorch's speed: what is aimed at. */
const TORCH_AIM = 2;

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const high = sorted[sorted.length >> 1] ?? NaN;
  return sorted.length % 2 === 1 ? high : ((sorted[(sorted.length >> 1) - 1] ?? NaN) + high) / 2;
}

/** Milliseconds of a step, of its products alone and of the peer, from the same stretch of time. */
interface Round {
  readonly stepMs: number;
  readonly productsMs: number;
  readonly torch: TorchReport | undefined;
}

interface Measured {
  readonly rounds: readonly Round[];
  readonly peakBytes: number;
  readonly productShare: number;
}

/** Step, products and peer take turns, so that what else the machine does hits all of them. */
async function measure(one: BackendCase, threads: number, options: BackendBenchOptions): Promise<Measured> {
  const task = { config: one.config, options: one.options, threads };
  const started: Worker[] = [];
  const start = async (kind: "step" | "products" | "share"): ReturnType<typeof Worker.start> => {
    const made = await Worker.start({ kind, ...task });
    started.push(made.worker);
    return made;
  };
  try {
    const [step, products] = [(await start("step")).worker, (await start("products")).worker];
    for (const worker of [step, products]) await worker.run(WARM_UP);
    const rounds: Round[] = [];
    let peakBytes = 0;
    for (let i = 0; i < (options.quick ? QUICK_ROUNDS : one.rounds); i++) {
      const ours = await step.run(one.steps);
      const bound = await products.run(one.steps);
      const { torch: python } = options;
      const peer = python === undefined || one.torch === undefined ? undefined : one.torch;
      const torch = peer === undefined ? undefined : await runTorch(python ?? "", peer, threads, one.steps);
      peakBytes = ours.peakBytes;
      rounds.push({ stepMs: median(ours.runsMs), productsMs: median(bound.runsMs), torch });
    }
    await step.stop();
    await products.stop();
    const { report: shares } = await start("share");
    return { rounds, peakBytes, productShare: shares.productShare ?? NaN };
  } finally {
    await Promise.all(started.map((worker) => worker.stop()));
  }
}

function resultsOf(one: BackendCase, threads: number, { rounds, peakBytes, productShare }: Measured): BenchResult[] {
  const flops = productsOf(trainModel(one.config, one.options)).reduce((sum, node) => sum + productFlops(node), 0);
  const tokens = one.options.batch * one.options.seqLen;
  const [stepMs, productsMs] = [median(rounds.map((r) => r.stepMs)), median(rounds.map((r) => r.productsMs))];
  const torch = rounds.flatMap((round) => round.torch ?? []);
  const torchBytes = torch.length === 0 ? undefined : median(torch.map((run) => run.peakBytes));
  const figure = (metric: string, value: number, unit: string, bar: Partial<BenchResult> = {}): BenchResult => ({
    case: `${one.name}, ${threads} ${threads === 1 ? "thread" : "threads"}`,
    metric,
    value: Number(value.toPrecision(4)),
    unit,
    ...bar,
  });
  const results = [
    figure("tokens_per_second", (tokens * 1000) / stepMs, "tokens/s"),
    figure("gflops", flops / stepMs / 1e6, "GFLOP/s"),
    figure("bound_tokens_per_second", (tokens * 1000) / productsMs, "tokens/s"),
    figure("bound_gflops", flops / productsMs / 1e6, "GFLOP/s"),
    figure(
      "of_bound",
      median(rounds.map((r) => r.productsMs / r.stepMs)),
      "",
      one.leastOfBound === undefined ? {} : { least: one.leastOfBound },
    ),
    figure("product_share", productShare, ""),
    figure("peak_rss", peakBytes / 1e6, "MB", { most: Math.round((torchBytes ?? one.mostBytes) / 1e6) }),
  ];
  if (torch.length > 0) {
    const ratio = median(rounds.map((r) => (r.torch?.stepMs ?? NaN) / r.stepMs));
    results.push(
      figure("torch_tokens_per_second", (tokens * 1000) / median(torch.map((run) => run.stepMs)), "tokens/s"),
      figure("times_torch", ratio, "", { least: TORCH_AIM }),
      figure("torch_peak_rss", (torchBytes ?? NaN) / 1e6, "MB"),
    );
  }
  return results;
}

/**
 * Training steps at the shapes the issue names: their speed, the speed of their matrix products alone (the bound), the
 * share of products in the time of their nodes, each class of nodes timed by itself, and the process's peak memory.
 */
export async function backend(options: BackendBenchOptions): Promise<void> {
  const results: BenchResult[] = [];
  const cases = options.quick ? CASES.filter(({ name }) => name === "small" || name === "llama 135M LoRA") : CASES;
  for (const one of cases) {
    for (const threads of options.quick ? [2] : [1, 2]) {
      const measured = resultsOf(one, threads, await measure(one, threads, options));
      const speed = measured.map(({ metric, value }) => `${metric} ${value}`).join(", ");
      console.log(`${one.name} on ${threads}: ${speed} (load ${loadavg()[0]?.toFixed(1) ?? "unknown"})`);
      results.push(...measured);
    }
  }
  report("backend", results, options.json, options.strict);
}
