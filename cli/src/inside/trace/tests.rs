use kernel_ipc::trace::{Kind, Outcome, Span};

use super::tape::Written;
use super::tree::{Hop, assemble};
use super::{chrome, show};

/// A span that lasts from `times.0` to `times.1`; of a call that is served its handler begins 1 ns after it was seen.
fn span(id: u64, kind: Kind, names: [&str; 2], seq: u64, times: (u64, u64), parent: Option<u64>) -> Span {
    let [endpoint, peer] = names.map(str::to_owned);
    let is_served = kind == Kind::Served;
    Span {
        id,
        trace: 1,
        parent,
        kind,
        call: (9, 0, seq),
        operation: 77,
        epoch: 1,
        seen_ns: if is_served { times.0 } else { 0 },
        started_ns: Some(times.0 + u64::from(is_served)),
        ended: (times.1 != 0).then_some((times.1, Outcome::Done)),
        endpoint,
        peer,
        text: if kind == Kind::Call { String::new() } else { "read".into() },
    }
}

fn written(component: &str, epoch: u64, spans: Vec<Span>) -> Written {
    let spans = spans.into_iter().map(|span| (span.id, span)).collect();
    Written { component: component.into(), epoch, spans, lost: 0 }
}

fn drawn(hops: &[Hop]) -> Vec<String> {
    fn line(hop: &Hop, depth: usize, lines: &mut Vec<String>) {
        let callee = hop.callee.as_ref().map_or("", |callee| &callee.endpoint);
        let served: Vec<u64> = hop.served.iter().map(|served| served.seen_ns).collect();
        lines.push(format!("{}{} {callee} {} {served:?} {}", "  ".repeat(depth), hop.client, hop.name, show::end(hop)));
        hop.below.iter().for_each(|next| line(next, depth + 1, lines));
    }
    let mut lines = Vec::new();
    hops.iter().for_each(|hop| line(hop, 0, &mut lines));
    lines
}

#[test]
fn a_call_stands_with_what_its_host_says_below_the_one_that_it_was_made_for() {
    let all = [
        written(
            "web",
            1,
            vec![
                span(1, Kind::Work, ["", ""], 0, (10, 90), None),
                span(2, Kind::Call, ["fs.root", "x/1"], 1, (20, 80), Some(1)),
            ],
        ),
        written(
            "fs",
            1,
            vec![
                span(1, Kind::Served, ["root", "web"], 1, (30, 70), None),
                span(2, Kind::Call, ["disk.disk", "x/1"], 5, (40, 60), Some(1)),
                span(3, Kind::Served, ["root", "guest atoll"], 1, (95, 99), None),
            ],
        ),
        written("disk", 1, vec![span(7, Kind::Served, ["disk", "fs"], 5, (45, 55), None)]),
    ];
    let lines = drawn(&assemble(&all));
    assert_eq!(
        lines,
        [
            "web  read [] done",
            "  web fs.root read [30] done",
            "    fs disk.disk read [45] done",
            "guest atoll fs.root read [95] done",
        ]
    );
}

#[test]
fn who_says_that_others_calls_are_its_own_gets_nothing_of_them() {
    let honest = |more: Vec<Written>| {
        let mut all = vec![
            written("web", 1, vec![span(1, Kind::Call, ["fs.root", "x/1"], 1, (20, 80), None)]),
            written("fs", 1, vec![span(1, Kind::Served, ["root", "web"], 1, (30, 70), None)]),
        ];
        all.extend(more);
        drawn(&assemble(&all))
    };
    let alone = honest(Vec::new());
    assert_eq!(alone, ["web fs.root read [30] done"]);
    // A client, and a host, of a session between two others.
    let liar = |span| honest(vec![written("liar", 1, vec![span])]);
    let client = liar(span(1, Kind::Call, ["fs.root", "x/1"], 1, (10, 90), None));
    assert_eq!(client, ["liar fs.root operation 77 [] done", "web fs.root read [30] done"]);
    let host = liar(span(1, Kind::Served, ["root", "web"], 1, (10, 90), None));
    assert_eq!(host, ["web liar.root read [10] done", "web fs.root read [30] done"]);
    // The host says that it had the call before it was made.
    let early = [
        written("web", 1, vec![span(1, Kind::Call, ["fs.root", "x/1"], 1, (20, 80), None)]),
        written("fs", 1, vec![span(1, Kind::Served, ["root", "web"], 1, (10, 70), None)]),
    ];
    assert_eq!(drawn(&assemble(&early)), ["web fs.root operation 77 [] done"]);
}

#[test]
fn a_run_that_dies_is_named_at_what_it_was_doing() {
    let mut second = span(2, Kind::Served, ["root", "web"], 1, (60, 70), None);
    second.epoch = 2;
    let all = [
        written(
            "web",
            1,
            vec![
                span(1, Kind::Call, ["fs.root", "x/1"], 1, (20, 80), None),
                span(2, Kind::Call, ["fs.root", "x/1"], 2, (85, 0), None),
            ],
        ),
        written(
            "fs",
            2,
            vec![
                span(1, Kind::Served, ["root", "web"], 1, (30, 0), None),
                second,
                span(3, Kind::Call, ["disk.disk", "x/1"], 5, (40, 0), Some(1)),
            ],
        ),
    ];
    let lines = drawn(&assemble(&all));
    assert_eq!(
        lines,
        [
            "web fs.root read [30, 60] done; run 1 of fs died",
            "  fs disk.disk operation 77 [] run 1 of fs died",
            "web fs.root operation 77 [] under way",
        ]
    );
}

#[test]
fn two_that_are_below_each_other_are_drawn_once_or_not_at_all() {
    // Each serves the other one's call in the handler of its own: only liars do.
    let one = |name: &str, other: &str| {
        written(
            name,
            1,
            vec![
                span(1, Kind::Served, ["x", other], 1, (50, 60), None),
                span(2, Kind::Call, [&format!("{other}.x"), "x/1"], 1, (50, 60), Some(1)),
            ],
        )
    };
    assert!(assemble(&[one("a", "b"), one("b", "a")]).len() <= 2);
    let chain =
        (1..1000).map(|id| span(id, Kind::Work, ["", ""], 0, (id, 2000), id.checked_sub(1).filter(|id| *id > 0)));
    assert_eq!(assemble(&[written("a", 1, chain.collect())]).len(), 1);
}

#[test]
fn slices_of_a_lane_are_inside_or_beside_each_other_and_arrows_lead_between_them() {
    let all = [
        written(
            "web",
            1,
            vec![
                span(1, Kind::Work, ["", ""], 0, (10, 90), None),
                // These two are at the same time.
                span(2, Kind::Call, ["fs.root", "x/1"], 1, (20, 60), Some(1)),
                span(3, Kind::Call, ["fs.root", "x/1"], 2, (30, 80), Some(1)),
            ],
        ),
        written("fs", 1, vec![span(1, Kind::Served, ["root", "web"], 1, (40, 0), None)]),
    ];
    let json = chrome::json(&assemble(&all), &all, 1000);
    let events = json["traceEvents"].as_array().expect("a list");
    let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
    let lanes: Vec<_> = of("X").iter().map(|slice| (slice["pid"].clone(), slice["tid"].clone())).collect();
    assert_eq!(lanes, [(1, 1), (1, 1), (2, 1), (1, 2)].map(|(pid, tid)| (pid.into(), tid.into())));
    // Under way when the trace ends.
    assert_eq!(of("X")[2]["dur"], 0.96);
    let arrows: Vec<_> =
        [of("s"), of("f")].map(|ends| (ends.len(), ends[0]["pid"].clone(), ends[0]["ts"].clone())).into();
    assert_eq!(arrows, [(1, 1.into(), 0.02.into()), (1, 2.into(), 0.04.into())]);
}
