//! As much of JSON Schema (2020-12) as this repository's schemas use. A keyword that is not known here fails.

use serde_json::Value;

/// Where `document` is not what `schema` (a schema's text) says; nothing if it is.
pub fn faults(schema: &str, document: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(schema).unwrap();
    let mut faults = Vec::new();
    check(&schema, &schema, document, "$", &mut faults);
    faults
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    let mut wrong = |what: String| faults.push(format!("{at}: {what}, found {value}"));
    let number = value.as_f64();
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => {}
            "additionalProperties" => assert_eq!(*rule, Value::Bool(false)),
            "type" if !types(rule).any(|name| is(name, value)) => wrong(format!("not {rule}")),
            "const" if value != rule => wrong(format!("not {rule}")),
            "enum" if !list(rule).contains(value) => wrong(format!("not one of {rule}")),
            "minimum" if number < rule.as_f64() && number.is_some() => {
                wrong(format!("below {rule}"))
            }
            "maximum" if number > rule.as_f64() => wrong(format!("above {rule}")),
            "minLength" if value.is_string() && length(value) < rule.as_u64() => {
                wrong(format!("shorter than {rule}"))
            }
            "maxLength" if length(value) > rule.as_u64() => wrong(format!("longer than {rule}")),
            "required" => {
                let missing = list(rule)
                    .iter()
                    .filter(|name| value.is_object() && value.get(text(name)).is_none());
                missing.for_each(|name| wrong(format!("{name} is missing")));
            }
            "anyOf" => {
                let fits = |schema: &Value| {
                    let mut faults = Vec::new();
                    check(root, schema, value, at, &mut faults);
                    faults.is_empty()
                };
                if !list(rule).iter().any(fits) {
                    wrong("none of `anyOf`".to_owned());
                }
            }
            "type" | "const" | "enum" | "minimum" | "maximum" | "minLength" | "maxLength" => {}
            "$ref" | "properties" | "items" => {}
            other => panic!("`{other}` is not known to this test"),
        }
    }
    if let Some(path) = schema.get("$ref") {
        let pointer = text(path)
            .strip_prefix('#')
            .expect("a reference stays in its schema");
        let target = root.pointer(pointer).expect("a reference leads somewhere");
        check(root, target, value, at, faults);
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (n, value) in values.iter().enumerate() {
            check(root, items, value, &format!("{at}[{n}]"), faults);
        }
    }
    if let (Some(properties), Some(values)) = (schema.get("properties"), value.as_object()) {
        for (name, value) in values {
            match properties.get(name) {
                Some(schema) => check(root, schema, value, &format!("{at}.{name}"), faults),
                None if schema.get("additionalProperties").is_some() => {
                    faults.push(format!("{at}: `{name}` is not known"))
                }
                None => {}
            }
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("`{other}` is no type"),
    }
}

/// `"string"` or `["string", "null"]`.
fn types(rule: &Value) -> impl Iterator<Item = &str> {
    let one = std::slice::from_ref(rule);
    rule.as_array().map_or(one, Vec::as_slice).iter().map(text)
}

fn list(rule: &Value) -> &[Value] {
    rule.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let schema = r##"{
        "type": "object", "additionalProperties": false, "required": ["size", "name"],
        "properties": {
            "size": { "$ref": "#/$defs/size" },
            "name": { "type": ["string", "null"], "minLength": 2, "maxLength": 3 },
            "kind": { "anyOf": [{ "enum": ["a", "b"] }, { "const": 1 }] },
            "list": { "type": "array", "items": { "$ref": "#/$defs/size" } }
        },
        "$defs": { "size": { "type": "integer", "minimum": 0, "maximum": 9 } }
    }"##;
    for (document, says) in [
        (r#"{"size": 9, "name": null, "kind": 1, "list": [0]}"#, ""),
        (r#"{"size": -1, "name": "ab"}"#, "$.size: below 0"),
        (r#"{"size": 10, "name": "ab"}"#, "$.size: above 9"),
        (r#"{"size": 1.5, "name": "ab"}"#, "$.size: not \"integer\""),
        (r#"{"size": 1, "name": "a"}"#, "$.name: shorter"),
        (r#"{"size": 1, "name": "abcd"}"#, "$.name: longer"),
        (r#"{"size": 1}"#, "$: \"name\" is missing"),
        (
            r#"{"size": 1, "name": "ab", "more": 1}"#,
            "$: `more` is not known",
        ),
        (r#"{"size": 1, "name": "ab", "kind": "c"}"#, "$.kind: none"),
        (
            r#"{"size": 1, "name": "ab", "list": [1, "2"]}"#,
            "$.list[1]: not \"integer\"",
        ),
        ("[]", "$: not \"object\""),
    ] {
        let found = faults(schema, &serde_json::from_str(document).unwrap());
        match says {
            "" => assert_eq!(found, [""; 0], "{document}"),
            _ => assert!(
                matches!(found.as_slice(), [one] if one.starts_with(says)),
                "{document}: {found:?}"
            ),
        }
    }
}
