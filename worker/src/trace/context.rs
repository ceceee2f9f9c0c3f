//! W3C trace context, as a message carries it: in MQTT 5 user properties, or in the payload's `meta`.

use std::borrow::Cow;
use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use serde::Deserialize;

use crate::decode::Content;

/// Longest `tracestate` that is carried on; W3C asks for at least so much.
const MAX_STATE: usize = 512;
/// Length of a `traceparent` of version 00, and of what later versions begin with.
const PARENT: usize = 55;

/// A `traceparent` that is none. The message is treated as if it carried no context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What a message carries, if it carries anything.
pub type Carried = Option<Result<SpanContext, Malformed>>;

/// The context in MQTT 5 user properties.
pub fn in_properties(properties: &[(String, String)]) -> Carried {
    let find =
        |wanted: &str| properties.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    find("traceparent").map(|parent| parse(parent, find("tracestate")))
}

/// The context in a decoded message's `meta`, which is all that MQTT 3.1.1 leaves for it.
pub fn in_meta(content: &Content<'_>) -> Carried {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        traceparent: Cow<'a, str>,
        #[serde(borrow, default)]
        tracestate: Option<Cow<'a, str>>,
    }
    let document = &content.metadata.as_ref()?.document;
    if !document.contains("\"traceparent\"") {
        return None;
    }
    let found = serde_json::from_str::<Fields<'_>>(document)
        .map_err(|_| Malformed)
        .and_then(|fields| parse(&fields.traceparent, fields.tracestate.as_deref()));
    Some(found)
}

/// Reads a context. A `tracestate` that is malformed is dropped alone, as W3C says.
fn parse(parent: &str, state: Option<&str>) -> Result<SpanContext, Malformed> {
    let (head, rest) = parent.trim().split_at_checked(PARENT).ok_or(Malformed)?;
    let is_clean = |field: &str| field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let fields: Vec<&str> = head.split('-').collect();
    let &[version, trace_id, span_id, flags] = &fields[..] else { return Err(Malformed) };
    let lengths = [version.len(), trace_id.len(), span_id.len(), flags.len()];
    if lengths != [2, 32, 16, 2] || !fields.into_iter().all(is_clean) {
        return Err(Malformed);
    }
    // A later version may say more after another dash; ff is none.
    let ends_well = if version == "00" { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    if version == "ff" || !ends_well {
        return Err(Malformed);
    }
    let state = state
        .filter(|state| state.len() <= MAX_STATE)
        .and_then(|state| TraceState::from_str(state).ok())
        .unwrap_or_default();
    let context = SpanContext::new(
        TraceId::from_hex(trace_id).map_err(|_| Malformed)?,
        SpanId::from_hex(span_id).map_err(|_| Malformed)?,
        TraceFlags::new(u8::from_str_radix(flags, 16).map_err(|_| Malformed)?) & TraceFlags::SAMPLED,
        true,
        state,
    );
    if context.is_valid() { Ok(context) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry::trace::TraceContextExt;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use proptest::prelude::*;

    use super::*;
    use crate::decode::Metadata;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn property(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn meta(document: &str) -> Content<'_> {
        Content { metadata: Some(Metadata { ts: 0, document: document.into() }), ..Content::default() }
    }

    #[test]
    fn user_properties_carry_parent_and_state() {
        let properties =
            [property("x", "y"), property("tracestate", "vendor=1"), property("traceparent", GOOD)];
        let found = in_properties(&properties).unwrap().unwrap();
        assert_eq!(found.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(found.span_id().to_string(), "00f067aa0ba902b7");
        assert!(found.is_sampled() && found.is_remote());
        assert_eq!(found.trace_state().header(), "vendor=1");
        assert_eq!(in_properties(&[property("tracestate", "vendor=1")]), None);
    }

    #[test]
    fn meta_carries_the_same() {
        let document = format!(r#"{{"fw":"1.2","traceparent":"{GOOD}","tracestate":"a=b"}}"#);
        let properties = [property("traceparent", GOOD), property("tracestate", "a=b")];
        assert_eq!(in_meta(&meta(&document)), in_properties(&properties));
        assert_eq!(in_meta(&meta(r#"{"fw":"1.2"}"#)), None);
        assert_eq!(in_meta(&meta(r#"{"traceparent":7}"#)), Some(Err(Malformed)));
        assert_eq!(in_meta(&Content::default()), None);
    }

    #[test]
    fn a_malformed_parent_is_known_as_one() {
        let later = format!("{}-what-comes-later", GOOD.replacen("00", "cc", 1));
        assert!(parse(&later, None).is_ok());
        for wrong in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-00"),
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("-01", "-+1"),
            &"ä".repeat(28),
        ] {
            assert_eq!(parse(wrong, None), Err(Malformed), "{wrong}");
        }
    }

    #[test]
    fn a_bad_or_endless_state_is_dropped_alone() {
        // Each member is good.
        let endless = (0..5).map(|n| format!("k{n}={}", "x".repeat(120))).collect::<Vec<_>>().join(",");
        for state in ["no state", &endless] {
            let found = parse(GOOD, Some(state)).unwrap();
            assert_eq!(found.trace_state(), &TraceState::default(), "{state}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_means_the_same_to_the_official_propagator(
            parent in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?|.{0,60}"
        ) {
            if let Ok(found) = parse(&parent, None) {
                let headers = HashMap::from([("traceparent".to_owned(), parent)]);
                let official = TraceContextPropagator::new().extract(&headers);
                let span = official.span();
                prop_assert_eq!(span.span_context(), &found);
            }
        }
    }
}
