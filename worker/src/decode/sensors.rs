//! `{"device_id", "timestamp", "sensors": [{"sensor_id", "value", "unit", "type", "labels"}]}`.
//!
//! The topic says which device it is; `device_id`, `type` and `labels` are not read.

use penstock_crds::mapping::TimeUnit;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::{Content, Message, Micros, Sample, value};

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    timestamp: Raw<'a>,
    #[serde(borrow)]
    sensors: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Sensor<'a> {
    #[serde(borrow, rename = "sensor_id")]
    id: Raw<'a>,
    #[serde(borrow)]
    value: Raw<'a>,
    #[serde(borrow)]
    unit: Raw<'a>,
}

pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let document: Document<'a> = json::object(message.text)?;
    let sensors = document.sensors.unwrap_or_default();
    if sensors.is_empty() {
        return Err(Reject::whole(Reason::InvalidField, "the message has no 'sensors'"));
    }
    let ts = message.accept(message.time(document.timestamp, TimeUnit::Seconds)?)?;
    for (part, raw) in (0u32..).zip(sensors) {
        content.add(part, sensor(part, ts, raw));
    }
    Ok(())
}

fn sensor(part: u32, ts: Micros, raw: &RawValue) -> Result<Sample<'_>, Reject> {
    let sensor: Sensor<'_> = json::object(raw.get())?;
    Ok(Sample {
        part,
        point: json::name(sensor.id, "sensor_id")?,
        ts,
        value: value::plain(sensor.value, "value")?,
        unit: value::unit(sensor.unit, "unit")?,
        quality: 0,
    })
}
