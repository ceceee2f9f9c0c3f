use tokio::net::TcpListener;

use super::*;
use crate::mqtt::options::Protocol;

const PATIENCE: Duration = Duration::from_secs(20);
const CONNACK_V311: &[u8] = &[0x20, 2, 0, 0];
const CONNACK_V5: &[u8] = &[0x20, 3, 0, 0, 0];

fn options(port: u16, protocol: Protocol) -> Options {
    Options {
        host: "127.0.0.1".to_owned(),
        port,
        tls: None,
        protocol,
        client_id: "test".to_owned(),
        login: None,
        keep_alive: Duration::from_secs(30),
        session_expiry: Duration::ZERO,
        receive_maximum: 100,
        max_packet: 1 << 20,
        clean: true,
    }
}

/// A connection, and the broker's side of it after CONNACK.
async fn connected(protocol: Protocol, connack: &[u8]) -> (Result<Event, Lost>, Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut connection = Connection::new(&options(listener.local_addr().unwrap().port(), protocol));
    let broker = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.unwrap();
        let mut rest = vec![0; head[1].into()];
        stream.read_exact(&mut rest).await.unwrap();
        stream.write_all(connack).await.unwrap();
        stream
    };
    let (event, stream) = tokio::join!(connection.next(), broker);
    (event, connection, stream)
}

/// A PUBLISH at QoS 1 to topic `t`, of MQTT 3.1.1.
fn publish(packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let length = 5 + payload.len();
    let mut packet = vec![0x32, (length % 128) as u8 | 0x80, (length / 128) as u8, 0, 1, b't'];
    packet.extend(packet_id.to_be_bytes());
    packet.extend(payload);
    packet
}

#[tokio::test]
async fn a_packet_in_pieces_is_one_event_and_acknowledgements_leave_in_order_before_disconnect() {
    let (event, mut connection, mut broker) = connected(Protocol::V311, CONNACK_V311).await;
    assert!(matches!(event, Ok(Event::Connected(_))));
    let packet = publish(7, b"hello");
    let pieces = async {
        broker.write_all(&packet[..4]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        broker.write_all(&packet[4..]).await.unwrap();
    };
    let (event, ()) = tokio::join!(connection.next(), pieces);
    let Ok(Event::Publish(received)) = event else { panic!("{event:?}") };
    assert_eq!((received.packet_id, &received.payload[..]), (7, &b"hello"[..]));

    let client = connection.client().clone();
    assert!(client.acknowledge([7, 8].into_iter()));
    assert!(client.disconnect());
    assert!(!client.acknowledge(std::iter::once(9)), "DISCONNECT is the last packet");
    assert!(matches!(connection.next().await, Ok(Event::Disconnected)));
    let mut sent = Vec::new();
    broker.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent, [0x40, 2, 0, 7, 0x40, 2, 0, 8, 0xe0, 0]);
    drop(connection);
    assert!(!client.acknowledge(std::iter::once(9)), "the connection is over");
}

#[tokio::test]
async fn a_message_counts_with_all_of_its_packet() {
    let (_, mut connection, mut broker) = connected(Protocol::V5, CONNACK_V5).await;
    // 1000 bytes of user properties (property 38), and a payload of one byte.
    let mut packet = vec![0x30, 0xed, 0x07, 0, 1, b't', 0xe7, 0x07];
    packet.extend([&[38, 3, 0xdd][..], &[b'k'; 989], &[0, 5], b"value", b"p"].concat());
    broker.write_all(&packet).await.unwrap();
    let event = connection.next().await;
    let Ok(Event::Publish(received)) = event else { panic!("{event:?}") };
    assert_eq!((&received.payload[..], received.held), (&b"p"[..], packet.len()));

    let (_, mut connection, mut broker) = connected(Protocol::V311, CONNACK_V311).await;
    let packet = publish(7, b"hello");
    broker.write_all(&packet).await.unwrap();
    let event = connection.next().await;
    let Ok(Event::Publish(received)) = event else { panic!("{event:?}") };
    assert_eq!(received.held, packet.len() + 1, "the topic is a copy");
}

#[tokio::test]
async fn a_packet_that_ends_too_early_is_told_at_once() {
    // What a broker of MQTT 3.1.1 alone says to MQTT 5: its CONNACK has no properties.
    let begin = Instant::now();
    let (event, ..) = connected(Protocol::V5, &[0x20, 2, 0, 1]).await;
    assert!(event.unwrap_err().to_string().contains("version"));
    for (protocol, connack, cut) in [
        (Protocol::V5, CONNACK_V5, &[0x90, 2, 0, 1][..]),
        (Protocol::V311, CONNACK_V311, &[0x32, 4, 0, 1, b't', 0]),
    ] {
        let (_, mut connection, mut broker) = connected(protocol, connack).await;
        broker.write_all(cut).await.unwrap();
        let lost = tokio::time::timeout(PATIENCE, connection.next()).await.unwrap();
        assert!(matches!(lost, Err(Lost::Failed(_))), "{lost:?}");
    }
    assert!(begin.elapsed() < CONNECT_DEADLINE);
}

#[tokio::test]
async fn a_broker_that_reads_only_once_it_was_read_from_does_not_block() {
    const COUNT: u16 = 60_000;
    let (_, mut connection, mut broker) = connected(Protocol::V311, CONNACK_V311).await;
    let acknowledgements = usize::from(COUNT) * 100;
    for _ in 0..100 {
        connection.client().acknowledge(1..=COUNT);
    }
    let stubborn = async {
        for packet_id in 1..=COUNT {
            broker.write_all(&publish(packet_id, &[0; 200])).await.unwrap();
        }
        let mut sent = vec![0; acknowledgements * 4];
        broker.read_exact(&mut sent).await.unwrap();
        broker.write_all(&[0xd0, 0]).await.unwrap();
    };
    let reader = async {
        let mut received = 0;
        loop {
            match connection.next().await.unwrap() {
                Event::Publish(_) => received += 1,
                Event::Pong(_) => return received,
                other => panic!("{other:?}"),
            }
        }
    };
    let (received, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(reader, stubborn) }).await.unwrap();
    assert_eq!(received, COUNT);
}

#[tokio::test]
async fn reading_rests_when_it_may_and_acknowledgements_do_not() {
    let (_, mut connection, mut broker) = connected(Protocol::V311, CONNACK_V311).await;
    let begin = Instant::now();
    connection.rest();
    broker.write_all(&publish(7, b"hello")).await.unwrap();
    assert!(matches!(connection.next().await, Ok(Event::Publish(_))));
    assert!(begin.elapsed() >= REST);

    connection.rest_until = Some(Instant::now() + Duration::from_hours(1));
    let client = connection.client().clone();
    let acknowledged = async {
        client.acknowledge(std::iter::once(7));
        let mut sent = [0; 4];
        broker.read_exact(&mut sent).await.unwrap();
        sent
    };
    tokio::select! {
        event = connection.next() => panic!("{event:?}"),
        sent = acknowledged => assert_eq!(sent, [0x40, 2, 0, 7]),
        () = tokio::time::sleep(PATIENCE) => panic!("the acknowledgement rests"),
    }
}

#[tokio::test]
async fn a_thread_that_waits_for_something_else_in_a_rest_sleeps_once() {
    let (_, mut connection, _broker) = connected(Protocol::V311, CONNACK_V311).await;
    connection.rest();
    assert!(nap::is_asked());
    nap::take();
    connection.rest();
    assert!(!nap::is_asked());
}

#[tokio::test]
async fn a_broker_says_why_it_ends_or_refuses_a_connection() {
    // With no properties, and without saying that there are none, as Mosquitto does.
    for taken_over in [&[0xe0, 2, 0x8e, 0][..], &[0xe0, 1, 0x8e]] {
        let (event, mut connection, mut broker) = connected(Protocol::V5, CONNACK_V5).await;
        assert!(matches!(event, Ok(Event::Connected(_))));
        broker.write_all(taken_over).await.unwrap();
        let lost = tokio::time::timeout(PATIENCE, connection.next()).await.unwrap();
        assert!(matches!(lost, Err(Lost::TakenOver)), "{lost:?}");
    }

    for (protocol, connack, word) in [
        (Protocol::V5, &[0x20, 3, 0, 0x87, 0][..], "login_refused"),
        (Protocol::V5, &[0x20, 3, 0, 0x85, 0], "client_id_refused"),
        (Protocol::V5, &[0x20, 3, 0, 0x97, 0], "connection_refused"),
        (Protocol::V311, &[0x20, 2, 0, 5], "login_refused"),
        (Protocol::V311, &[0x20, 2, 0, 2], "client_id_refused"),
    ] {
        let (event, ..) = connected(protocol, connack).await;
        assert_eq!(event.unwrap_err().reason(), word);
    }
}

#[tokio::test]
async fn a_silent_broker_is_pinged_and_then_lost() {
    // A server's keep-alive of 1 s (property 19) replaces ours of 30 s.
    let (event, mut connection, mut broker) = connected(Protocol::V5, &[0x20, 6, 0, 0, 3, 19, 0, 1]).await;
    let Ok(Event::Connected(granted)) = event else { panic!("{event:?}") };
    assert_eq!(granted.keep_alive, Some(Duration::from_secs(1)));
    let lost = tokio::time::timeout(PATIENCE, connection.next()).await.unwrap();
    assert!(matches!(lost, Err(Lost::Silent(_))), "{lost:?}");
    let mut ping = [0; 2];
    broker.read_exact(&mut ping).await.unwrap();
    assert_eq!(ping, [0xc0, 0]);
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_told_apart() {
    let (_, mut connection, mut broker) = connected(Protocol::V311, CONNACK_V311).await;
    broker.write_all(&[0x32, 0xff, 0xff, 0xff, 0x7f]).await.unwrap();
    assert!(matches!(connection.next().await, Err(Lost::PacketTooLarge(_))));
}
