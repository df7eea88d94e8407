import type { GraphBuilder, Value } from "./builder.js";
import type { Piece } from "./layout.js";
import { concat, split } from "./ops.js";

interface Pieces {
  readonly pieces: readonly Piece[];
}

/**
 * Declares a flat vector as graph inputs `<name>.0`, `<name>.1`, ...: consecutive pieces of it, which a runtime feeds as
 * views of one buffer.
 */
export function inputPieces(g: GraphBuilder, layout: Pieces, name: string): Value[] {
  return layout.pieces.map((piece, i) => g.input(`${name}.${i}`, "float32", piece.shape));
}

/** The tensors by name, out of the pieces of a vector. */
export function unpackTensors(g: GraphBuilder, layout: Pieces, pieces: readonly Value[]): Map<string, Value> {
  const tensors = new Map<string, Value>();
  layout.pieces.forEach((piece, i) => {
    const value = pieces[i];
    if (value === undefined) throw new Error(`no value for piece ${i}`);
    const sizes = piece.tensors.map((tensor) => tensor.size);
    const parts = sizes.length === 1 ? [value] : split(g, value, 0, sizes);
    piece.tensors.forEach((tensor, k) => {
      const part = parts[k];
      if (part !== undefined) tensors.set(tensor.name, part);
    });
  });
  return tensors;
}

/** The way back: one piece out of the values of its tensors, by name. */
export function packPiece(g: GraphBuilder, piece: Piece, values: ReadonlyMap<string, Value>): Value {
  const parts = piece.tensors.map((tensor) => {
    const value = values.get(tensor.name);
    if (value === undefined) throw new Error(`no value for ${tensor.name}`);
    return value;
  });
  const [first] = parts;
  return parts.length === 1 && first !== undefined ? first : concat(g, parts, 0);
}
