import { rowSequence } from "./attention.js";
import { differentiate } from "./autodiff.js";
import type { GraphBuilder, Value } from "./builder.js";
import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import type { Piece } from "./layout.js";
import { corner, waitFor } from "./kernels.js";
import { loop } from "./loop.js";
import { countTargets, crossEntropy } from "./loss.js";
import { add, concat, dimension, gather, mul, reshape } from "./ops.js";
import { packPiece } from "./parameters.js";
import type { BoundModel } from "./variant.js";

/** Forward and backward pass of a batch. */

/** Token inputs, int64 [b, t]. */
export interface BatchInputs {
  readonly tokens: Value;
  readonly targets: Value;
  readonly segments: Value | undefined;
}

/** Declares tokens, targets, and segments where rows hold several documents. */
export function inputBatch(g: GraphBuilder, { batch, seqLen }: BatchShape, packed: boolean): BatchInputs {
  const rows = (name: string): Value => g.input(name, "int64", [batch, seqLen]);
  return { tokens: rows("tokens"), targets: rows("targets"), segments: packed ? rows("segments") : undefined };
}

export interface Learned {
  readonly lossSum: Value;
  readonly count: Value;
  /** Of the mean loss over the whole batch, piece by piece of the trainable vector. */
  readonly gradients: readonly Value[];
}

export interface TrainedModel extends BoundModel {
  readonly pieceList: readonly Piece[];
  readonly recompute: boolean;
}

/**
 * Gradients that are computed in the order in which they have been emitted. ONNX Runtime goes depth first from what is
 * made last to what that needs: it would go through the whole backward pass for the first block's gradients, and keep all
 * that the other ones are made of until after it. So the last piece waits for all tensors' gradients, met in order.
 */
function asMade(g: GraphBuilder, pieces: readonly Value[], byTensor: readonly Value[]): Value[] {
  const [last] = pieces.slice(-1);
  if (last === undefined || byTensor.length === 1) return [...pieces];
  const places = new Map(g.nodes.flatMap((node, i) => node.outputs.map(({ name }) => [name, i] as const)));
  const place = ({ name }: Value): number => places.get(name) ?? 0;
  const latestFirst = [...byTensor].sort((a, b) => place(b) - place(a));
  const corners = latestFirst.map((gradient) => corner(g, gradient));
  return [...pieces.slice(0, -1), waitFor(g, last, concat(g, corners, 0))];
}

/** Forward and backward pass of a batch, or of a part of one with `whole` unmasked targets. */
function learnAtOnce(
  g: GraphBuilder,
  config: ModelConfig,
  model: TrainedModel,
  { tokens, targets, segments }: BatchInputs,
  whole?: Value,
): Learned {
  const family = familyOf(config);
  const sequence = rowSequence(g, tokens, segments);
  const logits = family.logits(g, config, model.parameters, family.hidden(g, config, model.parameters, sequence));
  const loss = crossEntropy(g, logits, targets, whole);
  const seeds = [{ value: logits, gradient: loss.gradient() }];
  const byTensor = differentiate(g, seeds, [...model.tensors.values()], model.recompute);
  const named = new Map([...model.tensors.keys()].map((name, i) => [name, byTensor[i] as Value]));
  const gradients = model.pieceList.map((piece) => packPiece(g, piece, named));
  return { lossSum: loss.lossSum, count: loss.count, gradients: asMade(g, gradients, byTensor) };
}

/** The same in `parts` runs, one after the other, whose losses and gradients add up. */
function learnInParts(
  g: GraphBuilder,
  config: ModelConfig,
  model: TrainedModel,
  batch: BatchInputs,
  parts: number,
  whole?: Value,
): Learned {
  const cut = (input: Value): Value => {
    const [rows, time] = input.shape as [number, number];
    return reshape(g, input, [parts, rows / parts, time]);
  };
  const [tokens, targets] = [cut(batch.tokens), cut(batch.targets)];
  const segments = batch.segments && cut(batch.segments);
  const count = whole ?? countTargets(g, batch.targets);
  // Zeros that are made anew in each step: constants would take their place in memory for good.
  const zeros = model.pieces.map((piece) => mul(g, piece, g.scalar(0)));
  const [lossSum, ...gradients] = loop(g, parts, [g.scalar(0), ...zeros], (inner, run, [sumSoFar, ...soFar]) => {
    const part = (input: Value): Value => gather(inner, input, run);
    const inputs = { tokens: part(tokens), targets: part(targets), segments: segments && part(segments) };
    const learned = learnAtOnce(inner, config, model, inputs, count);
    return [
      add(inner, sumSoFar as Value, learned.lossSum),
      ...learned.gradients.map((gradient, i) => add(inner, soFar[i] as Value, gradient)),
    ];
  });
  return { lossSum: lossSum as Value, count, gradients };
}

/**
 * Loss and gradients of a batch.
 * @param parts in so many runs one after the other
 * @param whole number of unmasked targets of the whole batch, where this is a part of it: the gradient is of its mean
 * @throws RangeError if the batch cannot be cut into the parts
 */
export function learn(
  g: GraphBuilder,
  config: ModelConfig,
  model: TrainedModel,
  batch: BatchInputs,
  parts: number,
  whole?: Value,
): Learned {
  if (parts === 1) return learnAtOnce(g, config, model, batch, whole);
  const rows = dimension(batch.tokens.shape, 0);
  if (rows % parts !== 0) throw new RangeError(`a batch of ${rows} cannot be cut into ${parts} parts`);
  return learnInParts(g, config, model, batch, parts, whole);
}
