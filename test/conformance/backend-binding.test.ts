import test from "ava";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { backendConformance } from "./backend.js";

backendConformance(test, "binding", () => openOnnxBackend({ threads: 1, binding: true }), {
  relative: 1e-5,
  slope: 4e-3,
});
