import js from "@eslint/js";
import { defineConfig, globalIgnores } from "eslint/config";
import tseslint from "typescript-eslint";

/** Files that may touch the clock, randomness, the environment and timers. Everything else takes them as arguments. */
const impure = [
  "services/common/runtime/**",
  "services/common/adapters/**",
  "services/*/main.ts",
  "services/cli/**",
  "agent/main.ts",
  "agent/backend/{onnx,web}.ts",
  "agent/transport/**",
  "agent/runtime/**",
  "test/**",
];

const properties = [
  { object: "Date", property: "now", message: "Pass the time in as an argument (nowMs) or use the Clock port." },
  { object: "Math", property: "random", message: "Use the seeded generator in domain/rng.ts." },
  { object: "process", property: "env", message: "Read configuration in main.ts or runtime/ and pass it in." },
  { object: "process", property: "hrtime", message: "Use the Clock port." },
  { object: "performance", property: "now", message: "Use the Clock port." },
  { object: "crypto", property: "randomUUID", message: "Pass identities in as arguments." },
  { object: "crypto", property: "getRandomValues", message: "Pass randomness in as an argument." },
];

const timers = ["setTimeout", "setInterval", "setImmediate"].map((name) => ({
  name,
  message: "Timers live in runtime, adapters and main; wait on the Clock port.",
}));

const imports = ["node:timers", "node:timers/promises", "timers", "timers/promises"].map((name) => ({
  name,
  message: "Timers live in runtime, adapters and main; wait on the Clock port.",
}));

const randomImports = ["node:crypto", "crypto"].map((name) => ({
  name,
  importNames: ["randomBytes", "randomInt", "randomUUID", "randomFillSync", "randomFill"],
  message: "Pass randomness in as an argument.",
}));

export default defineConfig(
  globalIgnores(["dist/", "proto/gen/", "coverage/", "charts/", "**/kernels/assembly/"]),
  js.configs.recommended,
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    linterOptions: { reportUnusedDisableDirectives: "error", noInlineConfig: true },
    rules: {
      "@typescript-eslint/no-explicit-any": "error",
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true, allowBoolean: true }],
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "@typescript-eslint/consistent-type-imports": "error",
      "max-lines": ["error", { max: 400, skipBlankLines: true, skipComments: true }],
      "max-lines-per-function": ["error", { max: 90, skipBlankLines: true, skipComments: true }],
    },
  },
  {
    files: ["services/**/*.ts", "agent/**/*.ts"],
    ignores: impure,
    rules: {
      "no-restricted-properties": ["error", ...properties],
      "no-restricted-globals": ["error", ...timers],
      "no-restricted-imports": ["error", { paths: [...imports, ...randomImports] }],
      "no-restricted-syntax": [
        "error",
        {
          selector: "NewExpression[callee.name='Date'][arguments.length=0]",
          message: "Pass the time in as an argument.",
        },
        { selector: "CallExpression[callee.name='Date']", message: "Pass the time in as an argument." },
      ],
    },
  },
  {
    files: ["test/**"],
    rules: {
      "max-lines-per-function": "off",
      "no-restricted-syntax": [
        "error",
        {
          selector: "CallExpression[callee.object.name='t'][callee.property.name='timeout']",
          message:
            "AVA forgets its own limit then, and a test that hangs holds the run up. The limits are in run-tests.ts.",
        },
      ],
    },
  },
  {
    files: ["**/*.js", "**/*.cjs"],
    languageOptions: { globals: { process: "readonly", console: "readonly" } },
  },
  {
    files: ["**/*.cjs"],
    languageOptions: {
      sourceType: "commonjs",
      globals: { require: "readonly", module: "writable", __dirname: "readonly" },
    },
  },
);
