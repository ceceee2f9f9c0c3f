//! A device's answer to a command: `{"schema": "v1", "cmd_id", "ok", "ts_exec", "err"}`.
//!
//! The schema may be left out, and `ts_exec` may be Unix seconds: the original service's own
//! simulator sends it so.

use penstock_crds::mapping::TimeUnit;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::telemetry_v1::require_v1;
use super::{Ack, Content, Message, Micros, time};

/// Longest error text, in bytes.
const MAX_ERROR: usize = 64 * 1024;

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    schema: Raw<'a>,
    #[serde(borrow)]
    cmd_id: Raw<'a>,
    #[serde(borrow)]
    ok: Raw<'a>,
    #[serde(borrow)]
    ts_exec: Raw<'a>,
    #[serde(borrow)]
    err: Raw<'a>,
}

pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let document: Document<'a> = json::object(message.text)?;
    if !json::is_null(document.schema) {
        require_v1(document.schema)?;
    }
    let ok = match document.ok.map(RawValue::get) {
        Some("true") => true,
        Some("false") => false,
        _ => return Err(Reject::whole(Reason::InvalidField, "'ok' is neither true nor false")),
    };
    content.acks.push(Ack {
        cmd_id: json::name(document.cmd_id, "cmd_id")?,
        ok,
        executed_at: executed_at(document.ts_exec)?,
        error: if json::is_null(document.err) {
            None
        } else {
            Some(json::text(document.err, "err", MAX_ERROR)?)
        },
        document: json::document(message.text, "the message")?,
    });
    Ok(())
}

fn executed_at(raw: Raw<'_>) -> Result<Option<Micros>, Reject> {
    if json::is_null(raw) {
        return Ok(None);
    }
    match json::string(raw) {
        Some(text) => time::instant(&text).map(Some),
        None => time::number(json::get(raw), TimeUnit::Seconds).map(Some),
    }
}
