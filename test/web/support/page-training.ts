import { openWebBackend } from "#agent/backend/web.js";
import { runTraining, type TrainingCase } from "#test/backend/support/training-run.js";

/** A training case but for its graph, as JSON can carry it: vectors as arrays of numbers. */
export interface PlainCase {
  readonly name: string;
  readonly weights: number[];
  readonly frozen?: { readonly plain: number[]; readonly packed: number[]; readonly scales: number[] };
  readonly terms?: { readonly anchor?: number[]; readonly mu?: number; readonly correction?: number[] };
  readonly lr: number;
  readonly batches: readonly { readonly tokens: number[]; readonly targets: number[]; readonly segments: number[] }[];
}

const vector = (values: number[]): Float32Array => Float32Array.from(values);

function revive(graph: Uint8Array, { name, weights, frozen, terms, lr, batches }: PlainCase): TrainingCase {
  const { anchor, mu, correction } = terms ?? {};
  return {
    name,
    graph,
    weights: vector(weights),
    ...(frozen && {
      frozen: {
        plain: vector(frozen.plain),
        packed: Uint8Array.from(frozen.packed),
        scales: vector(frozen.scales),
      },
    }),
    ...(terms && {
      terms: {
        ...(anchor && { anchor: vector(anchor) }),
        ...(correction && { correction: vector(correction) }),
        ...(mu !== undefined && { mu }),
      },
    }),
    lr,
    batches: batches.map(({ tokens, targets, segments }) => ({
      tokens: Int32Array.from(tokens),
      targets: Int32Array.from(targets),
      segments: Int32Array.from(segments),
    })),
  };
}

/**
 * Runs in a browser: fetches a case, trains it, and returns what came out.
 * @param address of the case: the graph's file is at `<address>/graph.onnx`, the rest at `<address>/case.json`
 */
export async function trainInPage(address: string, threads: number): Promise<{ losses: number[]; weights: number[] }> {
  const graph = new Uint8Array(await (await fetch(`${address}/graph.onnx`)).arrayBuffer());
  const rest = (await (await fetch(`${address}/case.json`)).json()) as PlainCase;
  const { losses, state } = await runTraining(await openWebBackend({ threads }), revive(graph, rest));
  return { losses, weights: [...state.weights] };
}
