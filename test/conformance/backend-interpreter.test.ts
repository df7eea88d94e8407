import test from "ava";
import { openInterpreterBackend } from "#agent/backend/interpreter.js";
import { backendConformance } from "./backend.js";

const open = (): ReturnType<typeof openInterpreterBackend> =>
  openInterpreterBackend({ nowMs: () => performance.now() });

// What is left is the rounding of weights and results to float32.
backendConformance(test, "interpreter", open, { relative: 1e-6, slope: 1e-3, repeatedSteps: 2 });
