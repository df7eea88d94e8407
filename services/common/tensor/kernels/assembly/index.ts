export { checksum, mix } from "./checksum";
export { divide, squares } from "./lanes";
export { addSquares, finite, stepNesterov, stepScaled } from "./steps";
export { addFp32, decodeFp32 } from "./fp32";
export { addBf16, decodeBf16, squaresBf16 } from "./bf16";
export { addInt8, decodeInt8, encodeInt8, squaresInt8 } from "./int8";
export { addInt4, decodeInt4, encodeInt4, squaresInt4 } from "./int4";
export { addTopK, decodeTopK } from "./topk";
