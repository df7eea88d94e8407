import { diloco } from "./diloco.js";
import type { Strategy } from "./strategy.js";

/**
 * Streaming DiLoCo's outer step (Douillard 2025, arXiv 2501.18512, algorithm 2): DiLoCo's, taken on the values of the
 * round's fragment alone, whose momentum rests while other fragments have their rounds. What makes it stream lies around the
 * step: the round's fragment (`fragment-view.ts`) and the weights that devices keep.
 */
export const streamingDiloco: Strategy = { ...diloco, name: "streamingDiloco" };
