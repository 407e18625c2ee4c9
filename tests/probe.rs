//! One health check against real sockets that do everything wrong, and the checks that a
//! coordinator makes by itself.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use smartroute::checker::Report;
use smartroute::cluster::health::{Change, State};
use smartroute::handle::Command;
use smartroute::link::connection::split_tcp;
use smartroute::link::secrets::Secrets;
use smartroute::probe::{self, Alive, Answer, Failure, MARK, PROOF_HEADER, Target};
use support::{Event, Fake, Node, Raw, SECRET, member, settings, within};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

const LIMIT: Duration = Duration::from_millis(500);

static SECRETS: LazyLock<Secrets> = LazyLock::new(|| Secrets::new([SECRET]));

static TARGET: LazyLock<Target<'static>> = LazyLock::new(|| Target {
    authority: "127.0.0.1:80",
    path: "/.smartroute/health",
    node: "b",
    cluster: "test",
    secrets: &SECRETS,
    stall: Duration::from_secs(10),
});

/// Whatever happens, a check ends in its time.
async fn check(target: Target<'_>, address: &str, port: u16) -> Result<Alive, Failure> {
    let began = Instant::now();
    let connect = async { probe::connect(address, port).await.map(split_tcp) };
    let result = probe::check(target, LIMIT, connect).await;
    assert!(began.elapsed() < LIMIT + LIMIT, "it took too long");
    result
}

/// Checks a listener that answers one connection as `answer` does.
async fn against<F>(
    target: Target<'_>,
    answer: impl FnOnce(Raw, String) -> F,
) -> Result<Alive, Failure>
where
    F: Future<Output = ()>,
{
    let fake = Fake::bind().await;
    let serving = async {
        let mut raw = fake.accept().await;
        let head = String::from_utf8(raw.head().await).unwrap();
        answer(raw, head).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = check(target, "127.0.0.1", fake.port) => result,
        () = serving => unreachable!("it never ends"),
    }
}

async fn says(bytes: impl AsRef<[u8]>) -> Result<Alive, Failure> {
    against(*TARGET, async |mut raw, _| raw.write(bytes.as_ref()).await).await
}

fn query(head: &str) -> &str {
    let target = head.split(' ').nth(1).unwrap();
    target.split_once('?').unwrap().1
}

fn response(answer: &Answer) -> String {
    let proof = answer.proof.as_ref();
    let proof = proof.map_or(String::new(), |proof| {
        format!("{PROOF_HEADER}: {proof}\r\n")
    });
    format!(
        "HTTP/1.1 {} X\r\n{MARK}: 1\r\n{proof}Content-Length: {}\r\n\r\n{}",
        answer.status,
        answer.body.len(),
        answer.body
    )
}

/// What the endpoint of a node in this state says.
async fn node_says(
    target: Target<'_>,
    id: &str,
    cluster: &str,
    secret: &str,
    loop_age: Duration,
) -> Result<Alive, Failure> {
    let node = Node::start("b").await;
    let mut identity = node.identity();
    identity.node = member(id, 80);
    identity.node.incarnation = u64::MAX;
    identity.agreement.cluster_name = cluster.into();
    identity.secrets = Secrets::new([secret]);
    against(target, async |mut raw, head| {
        let answer = probe::answer(&identity, query(&head), loop_age);
        raw.write(response(&answer).as_bytes()).await;
    })
    .await
}

#[tokio::test]
async fn a_node_that_is_who_it_should_be_passes() {
    let loop_age = Duration::from_millis(7);
    let alive = node_says(*TARGET, "b", "test", SECRET, loop_age)
        .await
        .unwrap();
    let incarnation = u64::MAX;
    assert_eq!(
        alive,
        Alive {
            incarnation,
            loop_age
        }
    );
    let open = Target {
        secrets: &Secrets::new([""]),
        ..*TARGET
    };
    assert!(node_says(open, "b", "test", "", loop_age).await.is_ok());
}

#[tokio::test]
async fn another_node_another_cluster_another_secret_and_a_stall_are_told_apart() {
    let none = Duration::ZERO;
    let second = Duration::from_secs(1);
    let cases = [
        ("c", "test", SECRET, none, Failure::WrongNode("c".into())),
        (
            "b",
            "other",
            SECRET,
            none,
            Failure::WrongCluster("other".into()),
        ),
        ("b", "test", "another secret", none, Failure::Secret),
        ("b", "test", "", none, Failure::Secret),
        (
            "b",
            "test",
            SECRET,
            11 * second,
            Failure::Stalled(11 * second),
        ),
    ];
    for (id, cluster, secret, loop_age, failure) in cases {
        let result = node_says(*TARGET, id, cluster, secret, loop_age).await;
        assert_eq!(result, Err(failure));
    }
}

#[tokio::test]
async fn an_answer_cannot_be_played_again_or_posed() {
    let identity = Node::start("b").await.identity();
    let recorded = std::sync::Mutex::new(String::new());
    let first = against(*TARGET, async |mut raw, head| {
        let answer = response(&probe::answer(&identity, query(&head), Duration::ZERO));
        raw.write(answer.as_bytes()).await;
        *recorded.lock().unwrap() = answer;
    })
    .await;
    assert!(first.is_ok());
    let recorded = recorded.into_inner().unwrap();
    assert_eq!(says(&recorded).await, Err(Failure::Secret));
    let body = r#"{"node":"b","cluster":"test","incarnation":"1","loopAge":0}"#;
    let posed = Answer {
        status: 200,
        body: body.into(),
        proof: None,
    };
    assert_eq!(says(response(&posed)).await, Err(Failure::Secret));
}

#[tokio::test]
async fn nobody_listens() {
    let port = Fake::bind().await.port;
    assert_eq!(
        check(*TARGET, "127.0.0.1", port).await,
        Err(Failure::Refused)
    );
    assert_eq!(
        check(*TARGET, "localhost", port).await,
        Err(Failure::Refused)
    );
}

#[tokio::test]
async fn a_name_without_an_address() {
    let result = check(*TARGET, "no-such-host.invalid", 80).await;
    // Where the resolver itself hangs, the time is up first.
    let expected = matches!(result, Err(Failure::Dns(_) | Failure::NotConnected(LIMIT)));
    assert!(expected, "{result:?}");
}

#[tokio::test]
async fn a_full_backlog_connects_nobody() {
    // A listener that accepts nothing, filled until the kernel drops what comes.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(LIMIT / 2, tokio::net::TcpStream::connect(address)).await
    {
        held.push(connected.unwrap());
        assert!(held.len() < 64, "the backlog never fills");
    }
    let result = check(*TARGET, "127.0.0.1", address.port()).await;
    assert_eq!(result, Err(Failure::NotConnected(LIMIT)));
}

#[tokio::test]
async fn a_process_that_accepts_and_is_silent_or_drips() {
    let silent = against(*TARGET, async |_raw, _| std::future::pending().await).await;
    assert_eq!(silent, Err(Failure::NoAnswer(LIMIT)));
    let dripping = against(*TARGET, async |mut raw, _| {
        for byte in format!("HTTP/1.1 200 OK\r\n{MARK}: 1\r\nContent-Length: 4000\r\n\r\n").bytes()
        {
            raw.write(&[byte]).await;
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(dripping, Err(Failure::NoAnswer(LIMIT)));
}

#[tokio::test]
async fn a_reset_and_an_early_end_are_told_apart() {
    let reset = against(*TARGET, async |raw, _| {
        #[allow(deprecated, reason = "zero never blocks: it sends a reset")]
        raw.socket.set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    assert_eq!(reset, Err(Failure::Reset));
    let closed = against(*TARGET, async |raw, _| drop(raw)).await;
    assert!(matches!(closed, Err(Failure::Unreachable(_))), "{closed:?}");
    let half = format!("HTTP/1.1 200 OK\r\n{MARK}: 1\r\nContent-Length: 40\r\n\r\n{{");
    let short = against(*TARGET, async |mut raw, _| {
        raw.write(half.as_bytes()).await;
        std::future::pending().await
    });
    assert_eq!(short.await, Err(Failure::NoAnswer(LIMIT)));
    let cut = against(*TARGET, async |mut raw, _| {
        raw.write(half.as_bytes()).await;
        drop(raw);
    });
    assert!(matches!(cut.await, Err(Failure::BadAnswer(_))));
}

#[tokio::test]
async fn other_servers_are_named_as_such() {
    // Stock Hocuspocus, word for word.
    let stock = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n16\r\nWelcome to Hocuspocus!\r\n0\r\n\r\n";
    let failure = says(stock).await.unwrap_err();
    assert_eq!(failure, Failure::NotSmartRoute(200));
    assert!(failure.to_string().contains("SmartRoute is not there"));
    assert_eq!(
        says("HTTP/1.1 404 Not Found\r\n\r\n").await,
        Err(Failure::NotSmartRoute(404))
    );
    assert_eq!(says("SSH-2.0-OpenSSH_9.2\r\n").await, Err(Failure::NotHttp));
    assert_eq!(says([0; 600]).await, Err(Failure::NotHttp));
}

#[tokio::test]
async fn answers_that_are_too_much_or_too_little() {
    let endless = against(*TARGET, async |mut raw, _| {
        raw.write(b"HTTP/1.1 200 OK\r\n").await;
        for _ in 0..1_000 {
            raw.write(format!("X: {}\r\n", "x".repeat(4_000)).as_bytes())
                .await;
        }
    });
    assert!(matches!(endless.await, Err(Failure::BadAnswer(_))));
    for head in [
        "Content-Length: 99999999\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: a\r\n",
        "Transfer-Encoding: chunked\r\n",
        "",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{MARK}: 1\r\n{head}\r\n");
        assert!(
            matches!(says(answer).await, Err(Failure::BadAnswer(_))),
            "{head}"
        );
    }
    for (status, failure) in [
        (403, "secret"),
        (404, "linkPort"),
        (426, "clusterTls"),
        (503, "starting"),
        (405, "405"),
    ] {
        let answer = format!("HTTP/1.1 {status} X\r\n{MARK}: 1\r\nContent-Length: 0\r\n\r\n");
        let reason = says(answer).await.unwrap_err().to_string();
        assert!(reason.contains(failure), "{reason}");
    }
    let later = format!("HTTP/1.1 200 OK\r\n{MARK}: 2\r\nContent-Length: 0\r\n\r\n");
    assert!(matches!(says(later).await, Err(Failure::BadAnswer(_))));
}

/// Health records of a node so far: (peer, state, change, reason).
fn records(events: &[Event]) -> Vec<(String, String, Option<String>, Option<String>)> {
    let text = |value: &serde_json::Value| value.as_str().map(ToOwned::to_owned);
    let health = events.iter().filter_map(|event| match event {
        Event::Health(json) => Some((
            text(&json["node"]).unwrap(),
            text(&json["state"]).unwrap(),
            text(&json["change"]),
            text(&json["reason"]),
        )),
        _ => None,
    });
    health.collect()
}

#[tokio::test]
async fn a_coordinator_checks_its_members_and_forgets_those_that_left() {
    let mut settings = settings();
    settings.health_check.interval = 20;
    settings.health_check.timeout = 200;
    settings.health_check.retries = 2;
    settings.health_check.max_backoff = 40;
    let b = Node::start("b").await;
    let served = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = served.local_addr().unwrap().port();
    let asked = Arc::default();
    let endpoint = serve(served, &b, &asked);
    let mut a = Node::seeded("a", SECRET, settings, &[("b", port)]).await;
    a.until("b passes", |events| {
        records(events)
            .iter()
            .find(|record| record.1 == "healthy")
            .cloned()
    })
    .await;
    endpoint.abort();
    let failed = a
        .until("b is down", |events| {
            records(events)
                .iter()
                .find(|record| record.2.as_deref() == Some("failed"))
                .cloned()
        })
        .await;
    assert_eq!(failed.1, "down");
    assert_eq!(failed.3.as_deref(), Some("connection refused"));
    assert_eq!(
        a.core.snapshot.load().view.members.len(),
        2,
        "an opinion moves nothing"
    );

    let again = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let endpoint = serve(again, &b, &asked);
    a.until("b is back", |events| {
        records(events)
            .iter()
            .find(|record| record.2.as_deref() == Some("recovered"))
            .cloned()
    })
    .await;

    a.core.request(Command::Remove("b".into())).unwrap();
    let core = Arc::clone(&a.core);
    a.until("b is gone", |_| {
        (core.snapshot.load().view.members.len() == 1).then_some(())
    })
    .await;
    a.drain();
    a.events.clear();
    // A check that was under way ends.
    sleep(Duration::from_millis(100)).await;
    let before = asked.load(Ordering::Relaxed);
    sleep(Duration::from_millis(200)).await;
    a.drain();
    assert_eq!(records(&a.events), [], "nobody hears of a node that left");
    assert_eq!(asked.load(Ordering::Relaxed), before, "nobody checks it");
    endpoint.abort();
}

#[tokio::test]
async fn a_report_that_outlived_its_checker_is_not_heard() {
    let mut a = Node::seeded("a", SECRET, settings(), &[("b", 1)]).await;
    let report = |checker, reason: &str| {
        let report = Report {
            state: State::Down(0),
            change: Some(Change::Failed),
            result: Err(Failure::Unreachable(reason.into())),
            latency: Duration::ZERO,
        };
        let peer = "b".into();
        a.core
            .request(Command::Checked {
                peer,
                checker,
                report,
            })
            .unwrap();
    };
    report(0, "late");
    report(1, "current");
    let heard = a.until("the current one", |events| {
        let records = records(events);
        (!records.is_empty()).then_some(records)
    });
    let reasons: Vec<_> = heard.await.into_iter().map(|record| record.3).collect();
    assert_eq!(reasons, [Some("current".to_owned())]);
}

#[tokio::test]
async fn while_javascript_stands_still_only_news_is_queued() {
    let mut settings = settings();
    settings.health_check.interval = 10;
    settings.health_check.timeout = 10;
    settings.health_check.retries = 1_000;
    settings.stall_timeout = 300;
    // Nobody calls `turn` in this test.
    let mut a = Node::seeded("a", SECRET, settings, &[("b", 1)]).await;
    a.until("checks are told at first", |events| {
        (records(events).len() > 3).then_some(())
    })
    .await;
    sleep(Duration::from_millis(400)).await;
    a.drain();
    let before = records(&a.events).len();
    sleep(Duration::from_millis(200)).await;
    a.drain();
    assert_eq!(records(&a.events).len(), before);
    a.core.turn();
    a.until("and again", |events| {
        (records(events).len() > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn checks_that_need_javascript_are_not_made_while_it_stands_still() {
    let mut settings = settings();
    settings.health_check.interval = 10;
    settings.health_check.timeout = 10;
    settings.dial_through_pipe = true;
    // Links would be dialed through pipes as well.
    settings.enforce_routing = false;
    let mut a = Node::seeded("a", SECRET, settings, &[("b", 1)]).await;
    let pipes = |events: &[Event]| {
        let pipes = events
            .iter()
            .filter(|event| matches!(event, Event::Pipe(_)));
        pipes.count()
    };
    a.until("pipes are dialed at first", |events| {
        (pipes(events) > 3).then_some(())
    })
    .await;
    sleep(Duration::from_millis(500)).await;
    a.drain();
    let before = (pipes(&a.events), records(&a.events).len());
    sleep(Duration::from_millis(200)).await;
    a.drain();
    assert_eq!((pipes(&a.events), records(&a.events).len()), before);
    a.core.turn();
    a.until("and again", |events| {
        (pipes(events) > before.0).then_some(())
    })
    .await;
}

/// A node's health endpoint, as the shim serves it; counts what it is asked.
fn serve(
    listener: TcpListener,
    node: &Node,
    asked: &Arc<AtomicUsize>,
) -> tokio::task::JoinHandle<()> {
    let core = Arc::clone(&node.core);
    let asked = Arc::clone(asked);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let mut raw = Raw::over(socket);
            let head = within("a request", raw.head()).await;
            let head = String::from_utf8(head).unwrap();
            // Links are dialed here as well: they find no acceptor.
            if !head.starts_with("GET /.smartroute/health?") {
                continue;
            }
            asked.fetch_add(1, Ordering::Relaxed);
            let identity = core.identity.load_full();
            let answer = probe::answer(&identity, query(&head), Duration::ZERO);
            raw.write(response(&answer).as_bytes()).await;
        }
    })
}
