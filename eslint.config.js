import js from "@eslint/js";
import tseslint from "typescript-eslint";

/** Files that may touch the clock, randomness, the environment and timers. Everything else takes them as arguments. */
const impure = [
  "services/common/runtime/**",
  "services/common/adapters/**",
  "services/*/main.ts",
  "services/cli/**",
  "agent/main.ts",
  "agent/backend/onnx.ts",
  "agent/transport/**",
  "agent/runtime/**",
  "test/**",
];

const purity = [
  { object: "Date", property: "now", message: "Pass the time in as an argument (nowMs) or use the Clock port." },
  { object: "Math", property: "random", message: "Use the seeded generator in domain/rng.ts." },
  { object: "process", property: "env", message: "Read configuration in main.ts or runtime/ and pass it in." },
  { object: "performance", property: "now", message: "Use the Clock port." },
];

export default tseslint.config(
  { ignores: ["dist/**", "proto/gen/**", "node_modules/**", "coverage/**", "charts/**"] },
  js.configs.recommended,
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/no-explicit-any": "error",
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true, allowBoolean: true }],
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "max-lines": ["error", { max: 400, skipBlankLines: true, skipComments: true }],
      "no-restricted-properties": ["error", ...purity],
      "no-restricted-globals": [
        "error",
        { name: "setTimeout", message: "Timers live in runtime, adapters and main." },
        { name: "setInterval", message: "Timers live in runtime, adapters and main." },
        { name: "setImmediate", message: "Timers live in runtime, adapters and main." },
      ],
      "no-restricted-syntax": [
        "error",
        { selector: "NewExpression[callee.name='Date'][arguments.length=0]", message: "Pass the time in as an argument." },
      ],
    },
  },
  {
    files: impure,
    rules: { "no-restricted-properties": "off", "no-restricted-globals": "off", "no-restricted-syntax": "off" },
  },
  {
    files: ["**/*.js", "**/*.cjs"],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: { globals: { process: "readonly", console: "readonly" } },
    rules: { "no-restricted-properties": "off", "no-restricted-globals": "off", "no-restricted-syntax": "off" },
  },
);
