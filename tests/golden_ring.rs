//! Where documents live, pinned.
//!
//! `tests/golden/*.txt` hold the owner of some hundred names on several rings. **A change in one of
//! them moves users' documents to other nodes, and in a cluster that is upgraded node by node it
//! gives a document two owners at once: it is a breaking change**, to be made knowingly, with a
//! major release and another `hash` in the handshake's agreement, so that old and new nodes refuse
//! each other.
//!
//! Regenerate (only then) with
//! `SMARTROUTE_GOLDEN=write cargo test --no-default-features --test golden_ring`.
//! `__test__/ring.test.mjs` checks the same files through the Node binding.
//!
//! A file has one fact per line, fields separated by tabs, every field JSON:
//! `virtualNodes N`, `member ID WEIGHT`, `place OWNER NAME`; a long name is written as
//! `{"repeat": TEXT, "count": N}`. Lines that begin with `#` are comments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use smartroute::cluster::view::{Member, MemberState, Snapshot, View};

struct Case {
    file: &'static str,
    about: &'static str,
    virtual_nodes: u32,
    members: Vec<(String, f64)>,
}

fn cases() -> Vec<Case> {
    let named = |count: u32| (1..=count).map(|n| (format!("node-{n}"), 1.0)).collect();
    let weighted = |members: &[(&str, f64)]| {
        let owned = |(id, weight): &(&str, f64)| ((*id).to_owned(), *weight);
        members.iter().map(owned).collect()
    };
    vec![
        Case {
            file: "one-node",
            about: "one node owns everything",
            virtual_nodes: 150,
            members: named(1),
        },
        Case {
            file: "three-nodes",
            about: "the default ring of three equal nodes",
            virtual_nodes: 150,
            members: named(3),
        },
        Case {
            file: "three-nodes-weighted",
            about: "the weights of the documented example",
            virtual_nodes: 150,
            members: weighted(&[("node-1", 1.0), ("node-2", 1.0), ("node-3", 2.0)]),
        },
        Case {
            file: "three-nodes-40",
            about: "fewer virtual nodes",
            virtual_nodes: 40,
            members: named(3),
        },
        Case {
            file: "fractions",
            about: "fractional weights: 75, 338, 3 and 1 points",
            virtual_nodes: 150,
            members: weighted(&[
                ("half", 0.5),
                ("more", 2.25),
                ("little", 0.02),
                ("none-to-speak-of", 0.000_1),
            ]),
        },
        Case {
            file: "fractions-40",
            about: "fractional weights, fewer virtual nodes, ids that are not ASCII",
            virtual_nodes: 40,
            members: weighted(&[
                ("10.0.0.1:8000", 1.0),
                ("knoten-\u{e4}", 0.3),
                ("\u{1F600}", 1.7),
                ("\u{8282}\u{70b9}/a b", 0.75),
            ]),
        },
        Case {
            file: "ten-nodes",
            about: "ten equal nodes",
            virtual_nodes: 150,
            members: named(10),
        },
        Case {
            file: "ten-nodes-40",
            about: "ten equal nodes, fewer virtual nodes",
            virtual_nodes: 40,
            members: named(10),
        },
    ]
}

/// The names, as they are written in the files.
fn names() -> Vec<Value> {
    let repeat = |text: &str, count: usize| json!({ "repeat": text, "count": count });
    let mut names: Vec<Value> = [
        "",
        " ",
        "\0",
        "a",
        "a\0b",
        "a\0session",
        "/",
        "/a/b",
        "a/b/../c",
        "tab\tand\nnewline\r",
        "\"quoted\\\"",
        "caf\u{e9}",
        "cafe\u{301}",
        "stra\u{df}e \u{ff}\u{80}\u{a0}",
        "\u{4e2d}\u{6587}",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
        "\u{1F600}",
        "\u{1F468}\u{200d}\u{1F469}\u{200d}\u{1F467}",
        "\u{10FFFF}",
        "\u{FFFD}",
        "\u{FEFF}bom",
        "__proto__",
        "constructor",
        "550e8400-e29b-41d4-a716-446655440000",
    ]
    .map(Value::from)
    .to_vec();
    // Around the lengths at which XXH3 changes its algorithm (16, 128, 240 bytes), and around the
    // binding's stack buffer (512 bytes) with characters of one to four bytes across its end.
    for length in [3, 4, 8, 9, 16, 17, 128, 129, 240, 241] {
        names.push(repeat("x", length));
    }
    for length in 506..=514 {
        names.push(repeat("y", length));
    }
    for count in 253..=257 {
        names.push(repeat("\u{e9}", count));
    }
    for count in 168..=172 {
        names.push(repeat("\u{20ac}", count));
    }
    for count in 126..=129 {
        names.push(repeat("\u{1F600}", count));
    }
    // One block of XXH3, and the largest names.
    names.extend([repeat("z", 1024), repeat("z", 1025)]);
    names.extend([
        repeat("m", 1 << 20),
        repeat("\u{e9}", 1 << 19),
        repeat("\u{1F600}", 1 << 18),
    ]);
    names.extend((0..200).map(|n| Value::from(format!("document-{n}"))));
    names.extend((0..50).map(|n| Value::from(format!("tenant-{}/notes/{n:06}", n % 7))));
    names
}

fn text_of(name: &Value) -> String {
    match name {
        Value::String(text) => text.clone(),
        long => {
            let count = long["count"].as_u64().expect("a count");
            long["repeat"]
                .as_str()
                .expect("a text")
                .repeat(count as usize)
        }
    }
}

fn member(id: &str, weight: f64) -> Member {
    Member {
        id: id.into(),
        incarnation: 1,
        address: "127.0.0.1".into(),
        port: 80,
        link_port: None,
        weight,
        state: MemberState::Active,
    }
}

fn snapshot(members: impl IntoIterator<Item = Member>, virtual_nodes: u32) -> Snapshot {
    let members: BTreeMap<_, _> = members.into_iter().map(|m| (m.id.clone(), m)).collect();
    let view = View {
        epoch: 1,
        members,
        pins: BTreeMap::new(),
    };
    Snapshot::new(view, virtual_nodes)
}

fn owner<'a>(snapshot: &'a Snapshot, name: &str) -> &'a str {
    let index = snapshot.owner(name.as_bytes()).expect("a ring with nodes");
    &snapshot.active[index as usize].id
}

/// `virtualNodes` and members of a case, then one `place` line per name.
fn render(case: &Case) -> (String, Vec<String>) {
    let mut head = String::new();
    writeln!(head, "# {}", case.about).unwrap();
    head.push_str("# Made by tests/golden_ring.rs; a change here moves users' documents.\n");
    writeln!(head, "virtualNodes\t{}", case.virtual_nodes).unwrap();
    for (id, weight) in &case.members {
        writeln!(head, "member\t{}\t{}", json!(id), json!(weight)).unwrap();
    }
    let members = case.members.iter().map(|(id, weight)| member(id, *weight));
    let ring = snapshot(members, case.virtual_nodes);
    let place = |name: &Value| {
        let owner = json!(owner(&ring, &text_of(name)));
        format!("place\t{owner}\t{name}")
    };
    (head, names().iter().map(place).collect())
}

fn path(case: &Case) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{}.txt", case.file))
}

fn regenerates() -> bool {
    std::env::var_os("SMARTROUTE_GOLDEN").is_some_and(|value| value == "write")
}

/// The names but for those of megabytes, which only cost time once they are pinned.
fn short_names() -> Vec<String> {
    let mut texts: Vec<_> = names().iter().map(text_of).collect();
    texts.retain(|name| name.len() < 10_000);
    texts
}

#[test]
fn every_document_stays_where_it_was() {
    for case in cases() {
        let (head, placements) = render(&case);
        if regenerates() {
            let text = format!("{head}{}\n", placements.join("\n"));
            std::fs::write(path(&case), text).unwrap();
            continue;
        }
        let golden = std::fs::read_to_string(path(&case)).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; see the head of this file",
                path(&case).display()
            )
        });
        let pinned = golden
            .strip_prefix(&head)
            .unwrap_or_else(|| panic!("{}: another ring than the test's:\n{head}", case.file));
        let pinned: Vec<&str> = pinned.lines().collect();
        assert_eq!(pinned.len(), placements.len(), "{}: other names", case.file);
        let moved: Vec<_> = pinned
            .iter()
            .zip(&placements)
            .filter(|(was, is)| *was != is)
            .take(5)
            .collect();
        assert!(
            moved.is_empty(),
            "{}: documents moved between nodes (was, is); this breaks users: {moved:#?}",
            case.file
        );
    }
}

#[test]
fn no_file_is_left_over_from_a_case_that_is_gone() {
    if regenerates() {
        return;
    }
    let known: BTreeSet<_> = cases().iter().map(path).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let found = std::fs::read_dir(folder).unwrap();
    let found: BTreeSet<_> = found.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(known, found);
}

#[test]
fn the_order_of_joining_places_nothing() {
    let mut random = StdRng::seed_from_u64(1);
    let names = short_names();
    for case in cases() {
        let mut members: Vec<_> = case.members.iter().map(|(id, w)| member(id, *w)).collect();
        let first = snapshot(members.clone(), case.virtual_nodes);
        for _ in 0..10 {
            members.shuffle(&mut random);
            let other = snapshot(members.clone(), case.virtual_nodes);
            assert_eq!(first.hash, other.hash);
            assert_eq!(first.active, other.active);
            for name in &names {
                assert_eq!(owner(&first, name), owner(&other, name), "{}", case.file);
            }
        }
    }
}

#[test]
fn only_ids_weights_and_states_place_documents() {
    let names = short_names();
    for case in cases() {
        let plain = case.members.iter().map(|(id, w)| member(id, *w));
        let moved = plain.clone().map(|known| Member {
            incarnation: 77,
            address: "10.1.2.3".into(),
            port: 9_999,
            link_port: Some(1),
            ..known
        });
        let idle = [
            Member {
                state: MemberState::Joining,
                ..member("a-node-that-joins", 5.0)
            },
            Member {
                state: MemberState::Leaving,
                ..member("z-node-that-leaves", 5.0)
            },
        ];
        let plain = snapshot(plain, case.virtual_nodes);
        let other = snapshot(moved.chain(idle), case.virtual_nodes);
        for name in &names {
            assert_eq!(owner(&plain, name), owner(&other, name), "{}", case.file);
        }
    }
}
