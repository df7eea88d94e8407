import { fedavg } from "./fedavg.js";
import type { Strategy } from "./strategy.js";

/**
 * FedProx (Li 2020): devices minimise their loss + mu/2 ||w - w_t||^2, which is `local.proximalMu`; the server averages
 * as FedAvg does.
 */
export const fedprox: Strategy = { ...fedavg, name: "fedprox" };
