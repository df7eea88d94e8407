export { addInto, pull, squareSum } from "./sums";
export { adamw } from "./adamw";
export { sgd } from "./sgd";
