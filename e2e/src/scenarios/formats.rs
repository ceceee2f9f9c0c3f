//! Payloads of every format, plain and compressed, compared in the tables row by row.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Connect, Packet, Publish, PublishProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bed::{Bed, require_identities};
use crate::fleet::now;
use crate::publisher::Outgoing;
use crate::scenario;
use crate::suite::Scenario;

const LONG: Duration = Duration::from_secs(60);

/// Subscriptions of all formats; the site tells which.
const SUBSCRIPTIONS: &str = r#"      - {filter: "traksense/+/auto/+/telem"}
      - {filter: "traksense/+/senml/+/telem", format: SenML}
      - {filter: "traksense/+/line/+/telem", format: InfluxLine, timeUnit: Seconds}
      - {filter: "traksense/+/fields/+/telem", format: Fields, timeField: at, timeUnit: Milliseconds}
      - filter: "traksense/+/mapped/+/telem"
        format: Mapped
        mapping:
          time: {pointer: /head/t, unit: Seconds}
          tenant: /head/customer
          device: /head/unit
          points:
          - {name: temp, pointer: /d/0, unit: celsius, scale: 0.1, offset: -40}
          each: {pointer: /more, name: /n, value: /v}
"#;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(every_format_is_stored_with_its_names_types_units_and_times),
        scenario!(compressed_payloads_are_expanded_and_a_bomb_is_a_dead_letter_with_its_own_bytes),
    ]
}

fn subscribe_all(text: &str) -> String {
    text.replace("      - {filter: \"traksense/+/+/+/telem\"}\n", SUBSCRIPTIONS)
}

fn message(site: &str, device: &str, payload: impl Into<bytes::Bytes>) -> Outgoing {
    Outgoing { topic: format!("traksense/t0/{site}/{device}/telem"), payload: payload.into(), qos: 1 }
}

/// All samples, one line each: `tenant/site/device point value unit +seconds`, after the base.
async fn samples(bed: &Bed, base: i64) -> Result<Vec<String>> {
    let query = format!(
        "SELECT concat(t.name, '/', d.site, '/', d.name, ' ', e.point, ' ', v_num::text, v_bool::text, v_text, ' ', e.unit, ' +', \
         trim_scale(extract(epoch FROM s.ts) - {base})) FROM penstock.sample s JOIN penstock.series e USING (series_id) \
         JOIN penstock.device d USING (device_id) JOIN penstock.tenant t USING (tenant_id)"
    );
    let rows: Vec<(String,)> = bed.rows(&query).await?;
    let mut rows: Vec<String> = rows.into_iter().map(|(row,)| row).collect();
    rows.sort();
    Ok(rows)
}

fn require_same(found: &[String], expected: &[&str]) -> Result<()> {
    let mut expected: Vec<String> = expected.iter().map(|&line| line.to_owned()).collect();
    expected.sort();
    ensure!(found == expected, "stored {found:#?}, expected {expected:#?}");
    Ok(())
}

async fn every_format_is_stored_with_its_names_types_units_and_times(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker_with(|text| subscribe_all(&text)).await?;
    let base = now() / 1_000_000 - 60;
    let iso = jiff::Timestamp::from_second(base)?;
    let rest = r#""VAR0":235,"VAR1":501,"WRSSI":-71,"RELE":0,"CNTSERR":3,"UPTIME":9"#;
    // [{bn: "c:", bt: base, n: "a", u: "Cel", v: 23.5}, {n: "raw", vd: h'fbff', t: 1}]
    let mut cbor = b"\x82\xa5\x21\x62c:\x22\x1a".to_vec();
    cbor.extend(u32::try_from(base)?.to_be_bytes());
    cbor.extend(b"\x00\x61a\x01\x63Cel\x02\xfb\x40\x37\x80\x00\x00\x00\x00\x00\xa3\x00\x63raw\x08\x42\xfb\xff\x06\x01");
    let messages = vec![
        message(
            "auto",
            "v1",
            format!(r#"{{"schema":"v1","ts":"{iso}","points":[{{"name":"p","t":"bool","v":true}}]}}"#),
        ),
        message("auto", "low", format!(r#"{{"di1":1,"di2":0,"rssi":-67,"fw":"1.2","ts":"{iso}"}}"#)),
        message("auto", "up", format!(r#"{{"schema":"parsec_v1","ts":"{iso}","DI1":0,"DI2":0}}"#)),
        message("auto", "unix", format!(r#"{{"timestamp":{base},"DI1":1,"DI2":1,"AI1":22.5}}"#)),
        message("auto", "je02", format!(r#"{{"DATA":{{"TS":{base},"INPUT1":1,"INPUT2":0,{rest}}}}}"#)),
        message("auto", "je02", r#"{"INFO":{"FW_VERSION":"1.2","MODEL":"JE02"}}"#),
        message(
            "auto",
            "sensors",
            format!(
                r#"{{"timestamp":{base}.25,"sensors":[{{"sensor_id":"t1","value":21.5,"unit":"celsius"}},{{"sensor_id":"m","value":"on"}}]}}"#
            ),
        ),
        message(
            "auto",
            "json",
            format!(
                r#"[{{"bn":"b:","bt":{base},"bu":"V","bv":1}},{{"n":"a","v":0.5,"t":-1}},{{"n":"c","vs":"x","u":"/"}}]"#
            ),
        ),
        message("auto", "cbor", cbor),
        message("senml", "sum", format!(r#"[{{"n":"e","bt":{base},"u":"W","s":7}}]"#)),
        message(
            "line",
            "l",
            format!("cpu,host=b,core=0 load=0.5,n=7i,up=t,s=\"a b\" {base}\n# x\ncpu load=1 {base}\n"),
        ),
        message("fields", "f", format!(r#"{{"at":{base}125,"temp":-1.5,"on":false,"mode":"eco"}}"#)),
        message(
            "mapped",
            "gateway",
            format!(
                r#"{{"head":{{"t":{base},"customer":"t7","unit":"real"}},"d":[615],"more":[{{"n":"x","v":true}},{{"n":"y","v":"z"}}]}}"#
            ),
        ),
    ];
    let count = messages.len() as f64;
    for _ in 0..2 {
        bed.publish(messages.clone()).await?;
    }
    worker.metric("all came twice", LONG, |m| m.get("ingest_committed_total") == count * 2.0).await?;
    let expected = [
        "t0/auto/v1 p true  +0",
        "t0/auto/low status RUN  +0",
        "t0/auto/low fault false  +0",
        "t0/auto/low rssi -67 dBm +0",
        "t0/auto/up status STOP  +0",
        "t0/auto/up fault false  +0",
        "t0/auto/unix status FAULT  +0",
        "t0/auto/unix fault true  +0",
        "t0/auto/unix ai1 22.5  +0",
        "t0/auto/je02 status RUN  +0",
        "t0/auto/je02 fault false  +0",
        "t0/auto/je02 rssi -71 dBm +0",
        "t0/auto/je02 uptime 9 s +0",
        "t0/auto/je02 cntserr 3  +0",
        "t0/auto/je02 var0 23.5 celsius +0",
        "t0/auto/je02 var1 50.1 % +0",
        "t0/auto/je02 rele false  +0",
        "t0/auto/sensors t1 21.5 celsius +0.25",
        "t0/auto/sensors m on  +0.25",
        "t0/auto/json b:a 1.5 V +-1",
        "t0/auto/json b:c x / +0",
        "t0/auto/cbor c:a 23.5 Cel +0",
        "t0/auto/cbor c:raw -_8  +1",
        "t0/senml/sum e#sum 7 W*s +0",
        "t0/line/l cpu.load{core=0,host=b} 0.5  +0",
        "t0/line/l cpu.n{core=0,host=b} 7  +0",
        "t0/line/l cpu.up{core=0,host=b} true  +0",
        "t0/line/l cpu.s{core=0,host=b} a b  +0",
        "t0/line/l cpu.load 1  +0",
        "t0/fields/f temp -1.5  +0.125",
        "t0/fields/f on false  +0.125",
        "t0/fields/f mode eco  +0.125",
        "t7/mapped/real temp 21.5 celsius +0",
        "t7/mapped/real x true  +0",
        "t7/mapped/real y z  +0",
    ];
    require_same(&samples(bed, base).await?, &expected)?;
    let info: Vec<(String, String)> = bed
        .rows("SELECT d.name, m.document::text FROM penstock.message m JOIN penstock.device d USING (device_id) ORDER BY 1")
        .await?;
    let expected = [("je02", r#"{"MODEL": "JE02", "FW_VERSION": "1.2"}"#), ("low", r#"{"fw": "1.2"}"#)];
    ensure!(info.iter().map(|(d, t)| (d.as_str(), t.as_str())).eq(expected), "metadata {info:?}");
    let letters: Vec<(String, String)> = bed.rows("SELECT reason, detail FROM penstock.dead_letter").await?;
    ensure!(letters.is_empty(), "dead letters {letters:?}");
    require_identities(&worker.idle().await?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn zlib(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

async fn compressed_payloads_are_expanded_and_a_bomb_is_a_dead_letter_with_its_own_bytes(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker_with(|text| subscribe_all(&text)).await?;
    let base = now() / 1_000_000 - 60;
    let plain = |value: u32| format!(r#"[{{"n":"a","bt":{base},"v":{value}}}]"#).into_bytes();
    let bomb = gzip(&vec![b' '; 100 << 20])?;
    let broken = gzip(&plain(1))?[..20].to_vec();
    ensure!(bomb.len() < 1 << 20, "the bomb has {} bytes", bomb.len());
    let messages = vec![
        message("auto", "gzip", gzip(&plain(1))?),
        message("auto", "zlib", zlib(&plain(2))?),
        message("auto", "zstd", zstd::encode_all(&plain(3)[..], 3)?),
        message("line", "zstd", zstd::encode_all(format!("m f=4 {base}").as_bytes(), 19)?),
        message("auto", "bomb", bomb.clone()),
        message("auto", "broken", broken.clone()),
    ];
    bed.publish(messages).await?;
    // The content type counts as well: this says what it is not.
    let topic = "traksense/t0/auto/said/telem";
    publish_as(&bed.address, topic, "application/gzip", &plain(5)).await?;
    publish_as(&bed.address, topic, "application/json", &plain(6)).await?;
    worker.metric("all came", LONG, |m| m.get("ingest_committed_total") == 8.0).await?;
    let expected = [
        "t0/auto/gzip a 1  +0",
        "t0/auto/zlib a 2  +0",
        "t0/auto/zstd a 3  +0",
        "t0/line/zstd m.f 4  +0",
        "t0/auto/said a 6  +0",
    ];
    require_same(&samples(bed, base).await?, &expected)?;
    let letters: Vec<(String, Vec<u8>)> = bed
        .rows("SELECT reason, payload FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest) ORDER BY reason, octet_length(payload)")
        .await?;
    let mut expected = vec![
        ("invalid_compression".to_owned(), broken),
        ("invalid_compression".to_owned(), plain(5)),
        ("too_large".to_owned(), bomb),
    ];
    expected[..2].sort_by_key(|(_, payload)| payload.len());
    ensure!(letters == expected, "the dead letters keep the bytes as they came");
    require_identities(&worker.idle().await?)
}

/// Publishes one message with a content type, by MQTT 5.
async fn publish_as(address: &str, topic: &str, content_type: &str, payload: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut output = BytesMut::new();
    let connect =
        Connect { keep_alive: 0, client_id: "content-type".into(), clean_start: true, properties: None };
    connect.write(&None, &None, &mut output)?;
    let properties =
        PublishProperties { content_type: Some(content_type.to_owned()), ..PublishProperties::default() };
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload.to_vec(), Some(properties));
    publish.pkid = 1;
    publish.write(&mut output)?;
    stream.write_all_buf(&mut output).await?;
    let mut input = BytesMut::new();
    let acknowledged = async {
        loop {
            match Packet::read(&mut input, None) {
                Ok(Packet::PubAck(_)) => return Ok(()),
                Ok(_) => {}
                Err(_) => ensure!(stream.read_buf(&mut input).await? > 0, "the broker closed the connection"),
            }
        }
    };
    tokio::time::timeout(LONG, acknowledged).await.context("PUBACK")?
}
