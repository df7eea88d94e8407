import { diloco } from "./diloco.js";
import { fedavg } from "./fedavg.js";
import type { Strategy } from "./strategy.js";

/** Every strategy: one file and one line each. */
const STRATEGIES: readonly Strategy[] = [fedavg, diloco];

/** The strategy of this name, if there is one. */
export function strategyByName(name: string): Strategy | undefined {
  return STRATEGIES.find((strategy) => strategy.name === name);
}
