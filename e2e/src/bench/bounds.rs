//! What the parts around the worker can do at most: the database alone, and the broker alone.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, BytesMut};
use penstock_worker::store::copy::{SAMPLE_COLUMNS, sample_stream};
use penstock_worker::store::rows::{RowValue, SampleRow};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{self as p5, Packet};
use sqlx::{Connection, Executor, PgConnection};

use super::measure::{Cost, Rate, WARM_UP};
use crate::bed::Bed;
use crate::fleet::now;
use crate::source::{Counts, Plan, Source, connect};

/// Rows of a batch of the bare COPY.
const BATCH: u32 = 10_000;

/// Rows a second of a bare binary COPY over one connection: batches of 10,000, sorted by series and
/// time, each a transaction, into a table of its own with the same schema.
pub async fn copy(bed: &Bed, series: u32, length: Duration) -> Result<f64> {
    bed.migrate().await?;
    let mut connection = PgConnection::connect(&bed.database.worker_url).await?;
    let statement = format!("COPY penstock.sample ({SAMPLE_COLUMNS}) FROM STDIN (FORMAT binary)");
    let (mut rows, mut buffer) = (Vec::new(), Vec::new());
    let (base, mut written) = (now(), 0u64);
    let mut measured: Option<(Instant, u64)> = None;
    let start = Instant::now();
    loop {
        rows.clear();
        rows.extend((0..u64::from(BATCH)).map(|index| {
            let number = written + index;
            SampleRow {
                series_id: (number % u64::from(series)) as i32 + 1,
                ts: base + number as i64,
                value: RowValue::Num(number as f64 / 8.0),
                quality: 0,
                delivery: 0,
                part: 0,
            }
        }));
        rows.sort_unstable_by_key(|row| (row.series_id, row.ts));
        sample_stream(&rows, "", &mut buffer);
        connection.execute("BEGIN").await?;
        let mut copy = connection.copy_in_raw(&statement).await?;
        copy.send(&buffer[..]).await?;
        copy.finish().await?;
        connection.execute("COMMIT").await?;
        written += u64::from(BATCH);
        match measured {
            None if start.elapsed() > WARM_UP => measured = Some((Instant::now(), written)),
            Some((since, before)) if since.elapsed() > length => {
                let rate = (written - before) as f64 / since.elapsed().as_secs_f64();
                connection.close().await?;
                let stored: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
                ensure!(stored as u64 == written, "the bare COPY stored {stored} of {written} rows");
                return Ok(rate);
            }
            _ => {}
        }
    }
}

/// Messages a second of a subscriber that only acknowledges, with the worker's settings.
pub async fn subscriber(bed: &mut Bed, plan: &Plan, receive_maximum: u16, length: Duration) -> Result<Rate> {
    let broker = bed.broker()?.id();
    let counts = Arc::new(Counts::default());
    let (ready, subscribed) = std::sync::mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (address, counts, stop) = (bed.address.clone(), Arc::clone(&counts), Arc::clone(&stop));
        move || -> Result<()> {
            counts.count_this_thread()?;
            consume(&address, receive_maximum, &counts, &stop, &ready)
        }
    });
    subscribed.recv_timeout(Duration::from_secs(10)).context("the subscriber is not subscribed")?;
    let source = Source::start(&Plan { address: bed.address.clone(), ..plan.clone() });
    let taken = || counts.taken.load(Ordering::Relaxed);
    let cost = || Cost {
        worker: counts.cpu_seconds(),
        broker: crate::worker::cpu_seconds(broker),
        database: 0.0,
        publishers: source.counts.cpu_seconds(),
    };
    let mut first = None;
    let start = Instant::now();
    let rate = loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        source.counts.taken.store(taken(), Ordering::Relaxed);
        match first {
            None if start.elapsed() > WARM_UP => first = Some((Instant::now(), taken(), cost())),
            Some((since, before, cost_before)) if since.elapsed() > length => {
                let messages = (taken() - before) as f64;
                let seconds = since.elapsed().as_secs_f64();
                break Rate {
                    messages,
                    points: messages * f64::from(plan.points),
                    seconds,
                    cost: cost() - cost_before,
                };
            }
            _ => {}
        }
    };
    let sent = source.finish()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while taken() < sent {
        ensure!(Instant::now() < deadline, "the subscriber got {} of {sent} messages", taken());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow::anyhow!("the subscriber panicked"))??;
    ensure!(taken() == sent, "the subscriber got {} messages, {sent} were sent", taken());
    Ok(rate)
}

/// Reads what is there, acknowledges all of it in one write, and does nothing else.
fn consume(
    address: &str,
    receive_maximum: u16,
    counts: &Counts,
    stop: &AtomicBool,
    ready: &std::sync::mpsc::Sender<()>,
) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let connect = p5::Connect {
        keep_alive: 0,
        client_id: "bench-bare".to_owned(),
        clean_start: true,
        properties: Some(p5::ConnectProperties {
            receive_maximum: Some(receive_maximum),
            ..p5::ConnectProperties::new()
        }),
    };
    let mut subscribe = p5::Subscribe::new(p5::Filter::new("traksense/#", QoS::AtLeastOnce), None);
    subscribe.pkid = 1;
    let mut output = BytesMut::new();
    connect.write(&None, &None, &mut output)?;
    subscribe.write(&mut output)?;
    stream.write_all(&output)?;
    let (mut buffer, mut input) = (vec![0; 256 * 1024], BytesMut::new());
    while !stop.load(Ordering::Relaxed) {
        let length = match stream.read(&mut buffer) {
            Ok(0) => bail!("the broker closed the subscriber's connection"),
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error.into()),
        };
        input.extend_from_slice(&buffer[..length]);
        output.clear();
        let mut taken = 0;
        loop {
            match Packet::read(&mut input, Some(1 << 20)) {
                Ok(Packet::Publish(publish)) => {
                    output.put_slice(&[0x40, 2]);
                    output.put_u16(publish.pkid);
                    taken += 1;
                }
                Ok(Packet::SubAck(_)) => ready.send(())?,
                Ok(Packet::ConnAck(_)) => {}
                Ok(other) => bail!("the broker sent {other:?}"),
                Err(rumqttc::v5::mqttbytes::Error::InsufficientBytes(_)) => break,
                Err(error) => return Err(error.into()),
            }
        }
        stream.write_all(&output)?;
        counts.taken.fetch_add(taken, Ordering::Relaxed);
    }
    Ok(())
}

/// Round trips to the broker while a worker uses it: the mean of PINGREQ to PINGRESP, in seconds.
pub fn round_trip(address: &str, stop: &AtomicBool) -> Result<f64> {
    let mut stream = connect(address, "bench-ping")?;
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        stream.write_all(&[0xc0, 0])?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer)?;
        ensure!(answer == [0xd0, 0], "no PINGRESP");
        times.push(sent.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(!times.is_empty(), "no round trip");
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}
