import type { Stretch } from "../tensor/stretches.js";
import type { ParameterLayout } from "./layout.js";

/** Number of the block that a tensor belongs to, by the first part of its name that is a number. */
function layerOf(name: string): number | undefined {
  const part = name.split(".").find((each) => /^\d+$/.test(each));
  return part === undefined ? undefined : Number(part);
}

/** Number of layers that have tensors in the layout. */
export function countLayers({ tensors }: Pick<ParameterLayout, "tensors">): number {
  return new Set(tensors.map(({ name }) => layerOf(name)).filter((layer) => layer !== undefined)).size;
}

/** Joins neighbours. */
function joined(stretches: readonly Stretch[]): Stretch[] {
  const joined: Stretch[] = [];
  for (const { start, length } of [...stretches].sort((a, b) => a.start - b.start)) {
    const last = joined.at(-1);
    if (last !== undefined && last.start + last.length === start) {
      joined[joined.length - 1] = { start: last.start, length: last.length + length };
    } else joined.push({ start, length });
  }
  return joined;
}

/**
 * The fragments of Streaming DiLoCo (Douillard 2025, section 2.2, strided pattern): the i-th layer that has tensors in the
 * layout belongs to fragment i mod `count`, whole. Tensors of no layer (embeddings, last norm, head) go, the largest first,
 * to the fragment that then has fewest values, so that no round's update is much larger than the others'.
 * @param count 1 to `countLayers(layout)`, so that no fragment is without a layer; 1 is the whole vector
 * @returns for each fragment its stretches of the flat vector, in order; together they are every value once
 */
export function fragmentsOf({ tensors }: Pick<ParameterLayout, "tensors">, count: number): Stretch[][] {
  const layers = [...new Set(tensors.map(({ name }) => layerOf(name)).filter((layer) => layer !== undefined))];
  layers.sort((a, b) => a - b);
  const fragments = Array.from({ length: count }, (): { values: number; stretches: Stretch[] } => ({
    values: 0,
    stretches: [],
  }));
  const add = (index: number, { offset, size }: { offset: number; size: number }): void => {
    const fragment = fragments[index];
    if (fragment === undefined) throw new RangeError(`fragment ${index} of ${count}`);
    fragment.values += size;
    fragment.stretches.push({ start: offset, length: size });
  };
  const rest = tensors.filter((place) => {
    const layer = layerOf(place.name);
    if (layer !== undefined) add(layers.indexOf(layer) % count, place);
    return layer === undefined;
  });
  rest.sort((a, b) => b.size - a.size || a.offset - b.offset);
  for (const place of rest) {
    const fewest = Math.min(...fragments.map(({ values }) => values));
    add(
      fragments.findIndex(({ values }) => values === fewest),
      place,
    );
  }
  return fragments.map(({ stretches }) => joined(stretches));
}
