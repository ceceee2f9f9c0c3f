//! Short visits to the broker under a client id of their own, which leave no session behind.

use std::time::Duration;

use super::connection::{Connection, Event, Granted, Lost};
use super::options::Options;

/// How long a visit may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a retained message may take.
const RETAINED: Duration = Duration::from_secs(1);

/// Logs in and out. A broker that refuses the client id has said nothing about the login.
pub async fn log_in(options: &Options) -> Result<Granted, Lost> {
    let mut connection = Connection::new(options);
    let granted = until(&mut connection, |event| match event {
        Event::Connected(granted) => Some(granted),
        _ => None,
    })
    .await?;
    log_out(connection).await;
    Ok(granted)
}

/// Ends the session of the client id, with all that the broker still queues for it.
pub async fn end_session(options: &Options) -> Result<(), Lost> {
    let clean = Options { clean: true, session_expiry: Duration::ZERO, ..options.clone() };
    log_in(&clean).await.map(drop)
}

/// Publishes one message at QoS 1 and waits until it left.
pub async fn publish(options: &Options, topic: &str, payload: &str) -> Result<(), Lost> {
    let mut connection = Connection::new(options);
    until(&mut connection, |event| matches!(event, Event::Connected(_)).then_some(())).await?;
    if !connection.client().publish(topic, payload) {
        return Err(Lost::Failed("the marker could not be sent".into()));
    }
    // PUBACK's reason is not looked at; whether the marker arrives is what the caller waits for.
    until(&mut connection, |event| matches!(event, Event::Published).then_some(())).await?;
    log_out(connection).await;
    Ok(())
}

/// A retained message that the broker has on the topic, if it lets this login read it.
pub async fn retained(options: &Options, topic: &str) -> Option<String> {
    let mut connection = Connection::new(options);
    until(&mut connection, |event| matches!(event, Event::Connected(_)).then_some(())).await.ok()?;
    connection.client().subscribe_unprotected(topic);
    let message = until(&mut connection, |event| match event {
        Event::Publish(publish) if publish.topic == topic.as_bytes() => {
            Some(String::from_utf8_lossy(&publish.payload).into_owned())
        }
        _ => None,
    });
    let message = tokio::time::timeout(RETAINED, message).await.ok()?.ok()?;
    log_out(connection).await;
    Some(message)
}

/// DISCONNECT, as far as it goes.
pub async fn log_out(mut connection: Connection) {
    connection.client().disconnect();
    let _ = until(&mut connection, |event| matches!(event, Event::Disconnected).then_some(())).await;
}

async fn until<T>(connection: &mut Connection, wanted: impl Fn(Event) -> Option<T>) -> Result<T, Lost> {
    let events = async {
        loop {
            if let Some(found) = wanted(connection.next().await?) {
                return Ok(found);
            }
        }
    };
    tokio::time::timeout(DEADLINE, events).await.unwrap_or(Err(Lost::Silent(DEADLINE)))
}
