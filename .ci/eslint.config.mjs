// The rules of `.ci/javascript`. ESLint's own sets are not imported, for npx installs ESLint alone.
const browser = ["Blob", "CSS", "CustomEvent", "MutationObserver", "ResizeObserver", "URL", "clearTimeout", "console", "document",
  "getSelection", "navigator", "setTimeout", "window"];
const rules = ["constructor-super", "eqeqeq", "no-cond-assign", "no-const-assign", "no-dupe-args", "no-dupe-class-members",
  "no-dupe-else-if", "no-dupe-keys", "no-duplicate-case", "no-empty", "no-fallthrough", "no-func-assign",
  "no-import-assign", "no-irregular-whitespace", "no-redeclare", "no-self-assign", "no-shadow", "no-sparse-arrays",
  "no-this-before-super", "no-undef", "no-unreachable", "no-unused-vars", "no-use-before-define", "no-useless-escape",
  "no-var", "prefer-const", "use-isnan", "valid-typeof"];

export default [{
  languageOptions: {
    ecmaVersion: 2022,
    sourceType: "module",
    globals: Object.fromEntries([...browser, "dagre"].map((name) => [name, "readonly"])),
  },
  rules: {
    ...Object.fromEntries(rules.map((name) => [name, "error"])),
    "no-use-before-define": ["error", { functions: false, classes: false, variables: false }],
  },
}];
