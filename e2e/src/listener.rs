//! A subscriber that keeps what it hears.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{Connect, Packet, Subscribe};
use rumqttc::mqttbytes::{Error as CodecError, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const MAX_PACKET: usize = 1 << 20;

type Heard = Arc<Mutex<Vec<(String, Bytes)>>>;

/// A subscriber at QoS 0, in the background.
#[derive(Debug)]
pub struct Listener {
    heard: Heard,
    task: JoinHandle<Result<()>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Subscribes; from now on nothing is missed.
    pub async fn start(address: &str, filter: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let mut packets = BytesMut::new();
        let mut connect = Connect::new(format!("listener-{}-{:x}", std::process::id(), fastrand::u32(..)));
        connect.keep_alive = 0;
        connect.write(&mut packets)?;
        let mut subscribe = Subscribe::new(filter, QoS::AtMostOnce);
        subscribe.pkid = 1;
        subscribe.write(&mut packets)?;
        stream.write_all_buf(&mut packets).await?;
        let mut input = BytesMut::new();
        while !matches!(next(&mut stream, &mut input).await.context("no SUBACK")?, Packet::SubAck(_)) {}
        let heard = Heard::default();
        let task = tokio::spawn({
            let heard = Arc::clone(&heard);
            async move {
                loop {
                    if let Packet::Publish(publish) = next(&mut stream, &mut input).await? {
                        lock(&heard).push((publish.topic, publish.payload));
                    }
                }
            }
        });
        Ok(Self { heard, task })
    }

    /// Topics and payloads so far.
    pub fn heard(&self) -> Vec<(String, Bytes)> {
        lock(&self.heard).clone()
    }
}

fn lock(heard: &Heard) -> MutexGuard<'_, Vec<(String, Bytes)>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next packet from the broker.
pub async fn next(stream: &mut TcpStream, input: &mut BytesMut) -> Result<Packet> {
    loop {
        match Packet::read(input, MAX_PACKET) {
            Err(CodecError::InsufficientBytes(_)) => {}
            packet => return Ok(packet?),
        }
        if stream.read_buf(input).await? == 0 {
            bail!("the broker closed the connection");
        }
    }
}
