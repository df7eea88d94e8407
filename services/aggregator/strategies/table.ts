import { fedadagrad, fedadam, fedyogi } from "./adaptive.js";
import { centeredClipping } from "./centered-clipping.js";
import { diloco } from "./diloco.js";
import { fedavg } from "./fedavg.js";
import { fedbuff } from "./fedbuff.js";
import { fedprox } from "./fedprox.js";
import { krum, multiKrum } from "./krum.js";
import { median } from "./median.js";
import { scaffold } from "./scaffold.js";
import { sparseLoco } from "./sparse-loco.js";
import type { Strategy } from "./strategy.js";
import { streamingDiloco } from "./streaming-diloco.js";
import { trimmedMean } from "./trimmed-mean.js";

/** Every strategy: one file and one name each. */
const STRATEGIES: readonly Strategy[] = [
  fedavg,
  fedprox,
  diloco,
  streamingDiloco,
  fedadam,
  fedyogi,
  fedadagrad,
  sparseLoco,
  median,
  trimmedMean,
  krum,
  multiKrum,
  centeredClipping,
  scaffold,
  fedbuff,
];

/** Names of all strategies. */
export const strategyNames: readonly string[] = STRATEGIES.map((strategy) => strategy.name);

/** The strategy of this name, if there is one. */
export function strategyByName(name: string): Strategy | undefined {
  return STRATEGIES.find((strategy) => strategy.name === name);
}
