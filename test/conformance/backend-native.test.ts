import test from "ava";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { backendConformance } from "./backend.js";
import { parityConformance, storiesConformance } from "./backend-fixtures.js";

const open = (): ReturnType<typeof openOnnxBackend> => openOnnxBackend({ threads: 1 });

backendConformance(test, "native", open, { relative: 1e-5, slope: 4e-3 });
parityConformance(test, "native", open);
storiesConformance(test, "native", open);
