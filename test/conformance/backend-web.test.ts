import test from "ava";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { openWebBackend } from "#agent/backend/web.js";
import { backendAgreement, backendConformance } from "./backend.js";
import { parityConformance, storiesConformance } from "./backend-fixtures.js";

const web = (): ReturnType<typeof openWebBackend> => openWebBackend({ threads: 1 });
const native = (): ReturnType<typeof openOnnxBackend> => openOnnxBackend({ threads: 1 });

backendConformance(test, "web", web, { relative: 1e-5, slope: 4e-3 });
backendAgreement(test, "web and native", [web, native], { losses: 1e-4, weights: 1e-4 });
parityConformance(test, "web", web);
storiesConformance(test, "web", web);
