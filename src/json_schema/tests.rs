//! Tests which parts of a schema are schemas, and where references lead.

use serde_json::json;

use super::uri::{join, percent_decoded, unescaped};
use super::*;

#[test]
fn data_is_not_walked_through() {
    let data = json!({"type": "number", "$ref": "#/nowhere", "properties": {"x": {"type": "number"}}});
    let schema = json!({
        "const": data, "enum": [data], "default": data, "examples": [data], "x-mine": data, "required": ["type"],
        "properties": {
            "const": {"type": "a"}, "default": {"type": "b"}, "properties": {"type": "c"}, "enum": {"type": "d"},
            "$ref": {"type": "e"}, "items": {"type": "f"}, "required": {"type": "g", "const": data},
        },
        "items": [{"type": "h"}], "dependencies": {"a": ["b"], "b": {"type": "i"}}, "not": {"type": "j"},
    });
    let mut found = Vec::new();
    walk(&schema, "#", &mut |path, value| found.push((path.to_owned(), value["type"].clone())));
    let kinds: Vec<_> = found.iter().filter_map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds.concat(), "abcdefghij", "{found:?}");
    assert!(found.iter().any(|(path, _)| path == "#/properties/$ref"), "{found:?}");
    let mut changed = schema.clone();
    walk_mut(&mut changed, &mut |keywords| {
        keywords.insert("seen".to_owned(), json!(true));
    });
    assert_eq!((&changed["const"], &changed["enum"][0]), (&data, &data));
    assert_eq!(changed["properties"]["required"]["const"], data);
    assert_eq!(changed["properties"]["default"], json!({"type": "b", "seen": true}));
    assert_eq!(changed["properties"].as_object().unwrap().len(), 7);
}

#[test]
fn references_lead_where_the_standards_say() {
    let schema = json!({
        "$id": "https://example.com/schemas/root.json",
        "$defs": {
            "a/b": {"title": "slash"}, "m~n": {"title": "tilde"}, "x<y": {"title": "less"}, "": {"title": "empty"},
            "%41": {"title": "percent"}, "é": {"title": "accent"},
            "anchored": {"$anchor": "here", "title": "anchor"}, "old": {"$id": "#older", "title": "old anchor"},
            "own": {"$id": "own.json", "title": "own", "$defs": {"in": {"title": "in own", "$ref": "#"}}},
        },
        "anyOf": [{"title": "first"}, {"properties": {"$ref": {"title": "a property"}}}],
        "components": {"schemas": {"part": {"title": "elsewhere", "items": {"title": "item"}}}},
    });
    for (reference, title) in [
        ("#/$defs/a~1b", "slash"),
        ("#/$defs/m~0n", "tilde"),
        ("#/$defs/x%3Cy", "less"),
        ("#/$defs/x<y", "less"),
        ("#/$defs/", "empty"),
        ("#/$defs/%2541", "percent"),
        ("#/$defs/%C3%A9", "accent"),
        ("#/%24defs/a~1b", "slash"),
        ("#here", "anchor"),
        ("#older", "old anchor"),
        ("own.json", "own"),
        ("/schemas/own.json#", "own"),
        ("https://example.com/schemas/own.json#/$defs/in", "in own"),
        ("#/$defs/own/$defs/in", "in own"),
        ("#/anyOf/0", "first"),
        ("#/anyOf/1/properties/$ref", "a property"),
        ("root.json#/anyOf/0", "first"),
        ("#/components/schemas/part/items", "item"),
    ] {
        let mut document = Document::new(&schema).unwrap();
        let place =
            document.follow(document.root(), reference).unwrap_or_else(|e| panic!("{reference}: {e}"));
        assert_eq!(document.value(place)["title"], title, "{reference}");
    }
    let mut document = Document::new(&schema).unwrap();
    let inner = document.follow(document.root(), "own.json#/$defs/in").unwrap();
    let own = document.follow(inner, "#").unwrap();
    assert_eq!(document.value(own)["title"], "own", "# is the nearest schema with a name");
    assert_eq!(document.path(inner), "#/$defs/own/$defs/in");
}

#[test]
fn references_that_lead_nowhere_name_their_place() {
    let schema = json!({"properties": {"a/b": {"$ref": "x"}}, "anyOf": [{}], "const": 5});
    let mut document = Document::new(&schema).unwrap();
    let at = document.follow(document.root(), "#/properties/a~1b").unwrap();
    for (reference, expected) in [
        ("#/nowhere", "\"#/nowhere\" leads nowhere: # has no \"nowhere\""),
        ("#/anyOf/00", "#/anyOf has no \"00\""),
        ("#/anyOf/1", "#/anyOf has no \"1\""),
        ("#/anyOf/-", "#/anyOf has no \"-\""),
        ("#anchor", "no $anchor is named so"),
        ("#/a~2b", "neither ~0 nor ~1"),
        ("#/%ff", "broken percent escape"),
        ("#/%4", "broken percent escape"),
        ("https://example.com/other.json", "leads out of this schema"),
    ] {
        let fault = document.follow(at, reference).unwrap_err();
        assert_eq!(fault.path, "#/properties/a~1b/$ref", "{reference}");
        assert!(fault.message.contains(expected), "{reference}: {fault}");
    }
    let fault = document.follow(at, "#/const").unwrap_err();
    assert_eq!(fault.to_string(), "#/const: found 5, expected a schema: an object, true or false");
    // Two tools may use the same `$id`: `#` means the nearest one, the name itself is ambiguous.
    let schema = json!({"anyOf": [{"$id": "u:x", "$defs": {"a": {"type": "null"}}, "items": {"$ref": "#/$defs/a"}},
                                  {"$id": "u:x", "$defs": {"a": true}}], "$ref": "u:x"});
    let mut document = Document::new(&schema).unwrap();
    let inner = document.follow(document.root(), "#/anyOf/0/items").unwrap();
    let found = document.follow(inner, "u:x#/$defs/a").unwrap();
    assert_eq!(document.path(found), "#/anyOf/0/$defs/a");
    let fault = document.follow(document.root(), "u:x").unwrap_err();
    assert_eq!(fault.to_string(), "#/$ref: \"u:x\" is ambiguous: more than one schema is named \"u:x\"");
    let twice = json!({"$defs": {"a": {"$anchor": "x"}, "b": {"$anchor": "x"}}});
    assert!(Document::new(&twice).unwrap_err().to_string().contains("the anchor \"x\""));
}

#[test]
fn uris_are_joined_as_rfc_3986_says() {
    for (base, reference, expected) in [
        ("http://a/b/c/d?q", "g", "http://a/b/c/g"),
        ("http://a/b/c/d?q", "./g/", "http://a/b/c/g/"),
        ("http://a/b/c/d?q", "/g", "http://a/g"),
        ("http://a/b/c/d?q", "//g", "http://g"),
        ("http://a/b/c/d?q", "../../g", "http://a/g"),
        ("http://a/b/c/d?q", "../../../g", "http://a/g"),
        ("http://a/b/c/d?q", "urn:x:y", "urn:x:y"),
        ("http://a", "g", "http://a/g"),
        ("", "g.json", "g.json"),
        ("x/y.json", "g.json", "x/g.json"),
    ] {
        assert_eq!(join(base, reference), expected, "{base} {reference}");
    }
    assert_eq!(percent_decoded("a%3Cb%25").as_deref(), Some("a<b%"));
    assert_eq!((percent_decoded("%"), percent_decoded("%zz"), percent_decoded("%+1")), (None, None, None));
    assert_eq!(unescaped("a~1b~01").as_deref(), Some("a/b~1"));
    assert!(unescaped("~").is_none());
}
