//! A small window: what one thread makes of it that does nothing but commit and acknowledge.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::{BufMut, BytesMut};
use penstock_worker::store::copy::{SAMPLE_COLUMNS, sample_stream};
use penstock_worker::store::rows::{RowValue, SampleRow};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, Subscribe};
use sqlx::{Connection, Executor, PgConnection};

use crate::bed::Bed;
use crate::fleet::now;
use crate::source::{Plan, Source};

const SERIES: u64 = 1000;
/// What the worker ends a transaction with.
const CLOCK_AND_COMMIT: &str = "SELECT clock_timestamp(); COMMIT";

/// Messages a second of a loop that drains the broker's queue: it takes `batch` messages of the window,
/// stores a row for each in one transaction of the worker's statements, and acknowledges them in one write.
pub async fn bare(bed: &Bed, batch: usize, plan: &Plan) -> Result<f64> {
    bed.migrate().await?;
    drop(Subscriber::connect(&bed.address, true)?);
    let queued = Source::fill(&Plan { address: bed.address.clone(), ..plan.clone() }).await?;
    let (address, url) = (bed.address.clone(), bed.database.worker_url.clone());
    let rate = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(drain(&address, &url, batch, queued))
    })
    .await??;
    let stored: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
    ensure!(stored as u64 == queued, "the bare loop stored {stored} of {queued} messages");
    println!("  bare loop, {batch} at a time: {rate:.0} messages/s");
    Ok(rate)
}

/// All on one thread: nobody has to be woken. The stretch from a tenth to nine tenths is measured.
async fn drain(address: &str, url: &str, batch: usize, queued: u64) -> Result<f64> {
    let mut connection = PgConnection::connect(url).await?;
    let copy = format!("COPY penstock.sample ({SAMPLE_COLUMNS}) FROM STDIN (FORMAT binary)");
    let mut subscriber = Subscriber::connect(address, false)?;
    let (mut rows, mut buffer, mut acknowledged) = (Vec::new(), Vec::new(), BytesMut::new());
    let (base, mut stored) = (now() - 3_600_000_000, 0u64);
    let (mut start, mut end) = (None, None);
    while stored < queued {
        let ids = subscriber.take(batch)?;
        rows.clear();
        rows.extend((stored..).take(ids.len()).map(|number| SampleRow {
            series_id: (number % SERIES) as i32 + 1,
            ts: base + number as i64,
            value: RowValue::Num(number as f64),
            quality: 0,
            delivery: 0,
            part: 0,
        }));
        rows.sort_unstable_by_key(|row| (row.series_id, row.ts));
        sample_stream(&rows, "", &mut buffer);
        connection.execute("BEGIN").await?;
        let mut into = connection.copy_in_raw(&copy).await?;
        into.send(&buffer[..]).await?;
        into.finish().await?;
        connection.fetch_all(CLOCK_AND_COMMIT).await?;
        acknowledged.clear();
        for id in &ids {
            acknowledged.put_slice(&[0x40, 2]);
            acknowledged.put_u16(*id);
        }
        subscriber.stream.write_all(&acknowledged)?;
        stored += ids.len() as u64;
        if start.is_none() && stored >= queued / 10 {
            start = Some((Instant::now(), stored));
        }
        if end.is_none() && stored >= queued / 10 * 9 {
            end = Some((Instant::now(), stored));
        }
    }
    connection.close().await?;
    let (Some((start, before)), Some((end, after))) = (start, end) else { bail!("nothing was drained") };
    Ok((after - before) as f64 / (end - start).as_secs_f64())
}

/// A subscriber of MQTT 3.1.1 whose session stays.
struct Subscriber {
    stream: TcpStream,
    input: BytesMut,
    buffer: Vec<u8>,
}

impl Subscriber {
    /// Connects, and makes the session's subscription where it has none.
    fn connect(address: &str, is_new: bool) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut connect = Connect::new("bench-bare-window");
        (connect.clean_session, connect.keep_alive) = (false, 0);
        let mut subscribe = Subscribe::new("traksense/#", QoS::AtLeastOnce);
        subscribe.pkid = 1;
        let mut output = BytesMut::new();
        connect.write(&mut output)?;
        if is_new {
            subscribe.write(&mut output)?;
        }
        stream.write_all(&output)?;
        let mut subscriber = Self { stream, input: BytesMut::new(), buffer: vec![0; 64 * 1024] };
        loop {
            match subscriber.next(false)? {
                Some(Packet::ConnAck(_)) if is_new => {}
                Some(Packet::ConnAck(_) | Packet::SubAck(_)) => return Ok(subscriber),
                other => bail!("the broker sent {other:?}"),
            }
        }
    }

    /// The packet ids of so many messages; of fewer where no more come.
    fn take(&mut self, batch: usize) -> Result<Vec<u16>> {
        let mut ids = Vec::with_capacity(batch);
        while ids.len() < batch {
            match self.next(!ids.is_empty())? {
                Some(Packet::Publish(publish)) => ids.push(publish.pkid),
                Some(_) => {}
                None => break,
            }
        }
        Ok(ids)
    }

    /// The next packet; `None` after a while without one, if that is allowed.
    fn next(&mut self, may_end: bool) -> Result<Option<Packet>> {
        loop {
            match Packet::read(&mut self.input, 1 << 20) {
                Ok(packet) => return Ok(Some(packet)),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(error.into()),
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => bail!("the broker closed the subscriber's connection"),
                Ok(length) => self.input.extend_from_slice(&self.buffer[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if may_end {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
