//! The component's end of the control socket: what the supervisor says, and what is done about it.

use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use nix::sys::signalfd::SignalFd;

use super::reactors::Question;
use super::{Context, Inner, Wanted, adoption, beyond, endpoint, hand_over, opening};
use crate::broker::{Channel, ChannelError, ToComponent, ToSupervisor};
use crate::runtime::io::{self, File};
use crate::runtime::spawn;
use crate::steps;

/// Serves the control socket until it ends.
pub(super) async fn listen(cx: Weak<Inner>, channel: Rc<Channel>) {
    loop {
        let heard = channel.next().await;
        let Some(cx) = cx.upgrade().map(Context) else { return };
        match heard {
            Ok((message, given)) => handle(&cx, message, given),
            Err(error) => {
                // A component goes on serving: its sessions do not need the supervisor, and the keeper will ask it to end.
                // Whoever waits for an answer of the supervisor hears that none will come.
                if !matches!(error, ChannelError::Closed) {
                    tracing::warn!("control socket: {error}");
                }
                cx.0.lost.happen();
                // Dropped with nothing borrowed: a session may end by it.
                drop((cx.0.asked.take(), cx.0.publishing.take(), cx.0.keeping.take()));
                drop((cx.0.books.take(), cx.0.sessions_asked.take()));
                return;
            }
        }
    }
}

/// Waits for SIGTERM, by which the keeper asks for an orderly end when there is no supervisor.
pub(super) async fn terminate(cx: Context, signals: SignalFd) {
    let signals = File::from(OwnedFd::from(signals));
    if io::poll_readable(&signals).await.is_ok() {
        cx.0.stop.happen();
    }
}

fn handle(cx: &Context, message: ToComponent, given: Vec<OwnedFd>) {
    let mut given = given.into_iter();
    // The channel has checked the number of descriptors.
    let mut descriptor = || given.next().expect("as many descriptors as the message has");
    match message {
        ToComponent::Opened { request, session, epoch, host, survives, .. } => {
            let opened = opening::Opened { session, epoch, host, survives };
            opening::opened(cx, request, opened, descriptor());
        }
        ToComponent::OpenFailed { request, error } => opening::failed(cx, request, error),
        ToComponent::OpenedBeyond(to) => opening::opened_beyond(cx, *to),
        ToComponent::ServeBeyond(wish) => drop(spawn(beyond::expect(cx.clone(), *wish))),
        ToComponent::Keys(keys) => beyond::renew(cx, &keys),
        ToComponent::NodeIs { node, is } => beyond::learn(cx, &node, is),
        ToComponent::Serve(serve) => {
            let segment = descriptor();
            if adoption::serves_already(cx, serve.session) {
                return;
            }
            if let Some(places) = &cx.0.places {
                return places.open(*serve, segment);
            }
            cx.0.serving.borrow_mut().insert(serve.session, (serve.client, Wanted::Yes));
            spawn(endpoint::serve(cx.clone(), *serve, segment, given.next()));
        }
        ToComponent::ClientGone { session, client, died, survives } => {
            if let Some(places) = &cx.0.places {
                // Nothing was lent on it, so nothing waits for its next run.
                places.gone(session, died && !survives);
            }
            if let Some((_, wanted)) = cx.0.serving.borrow_mut().get_mut(&session) {
                *wanted = if survives { Wanted::ByHeirs } else { Wanted::No };
            }
            let ended = cx.0.hosted.borrow_mut().remove(&session);
            let awaited = cx.0.survival.sessions.borrow_mut().remove(&session);
            if awaited.is_some() && !survives {
                cx.end_unresumed(session);
            }
            match ended {
                Some(ended) if survives => ended.abandon(),
                Some(ended) if died => ended.client_died(),
                Some(ended) => ended.close(),
                None => {}
            }
            if let Some((serve, _)) = awaited
                && let Some(endpoint) = cx.0.endpoints.borrow().get(&serve.endpoint).cloned()
            {
                endpoint.forsaken(&endpoint::info(&serve), died && !survives);
            }
            if died
                && !survives
                && let Some(lender) = &*cx.0.lender.borrow()
            {
                lender.borrow_mut().take_back_all(client);
            }
            cx.reclaim();
        }
        ToComponent::HostGone { session, survives: true } => opening::suspended(cx, session),
        ToComponent::HostGone { session, survives: false } => {
            let ended = cx.0.used.borrow_mut().remove(&session);
            if let Some(session) = ended.and_then(|ended| ended.session.upgrade()) {
                session.host_died();
            }
        }
        ToComponent::Kept { name } => {
            let memory = descriptor();
            if let Some((_, answer)) = cx.0.keeping.borrow_mut().remove(&name) {
                let _ = answer.give(memory);
            }
        }
        ToComponent::AdoptPins { lender, capacity } => {
            match cx.0.introductions.adopt_pins(lender, capacity, descriptor()) {
                Ok(()) => {
                    steps::reach("meet/pins-adopted");
                    cx.send(&ToSupervisor::PinsAdopted { lender }, &[]);
                }
                Err(error) => met(cx, lender, None, Some(error)),
            }
        }
        ToComponent::MeetLender { lender, of, epoch, status_entry } => {
            let status = cx.0.status.endpoint(status_entry);
            let error = cx.0.introductions.meet_lender((lender, of), epoch, descriptor(), status).err();
            steps::reach("meet/lender-met");
            met(cx, lender, None, error);
        }
        ToComponent::MeetRegion { lender, region } => {
            let error = cx.0.introductions.meet_region(lender, region, descriptor()).err();
            steps::reach("meet/region-met");
            met(cx, lender, Some(region), error);
        }
        ToComponent::LenderGone { lender, regions } => cx.0.introductions.lender_gone(lender, &regions),
        ToComponent::RegionPublished { region } => {
            if let Some(published) = cx.0.publishing.borrow_mut().remove(&region) {
                let _ = published.answer.give(());
            }
        }
        ToComponent::AttachPins { mapper, epoch, status_entry } => {
            let status = cx.0.status.endpoint(status_entry);
            match super::introductions::attach_pins(&cx.lender(), mapper, epoch, descriptor(), status) {
                Ok(()) => {
                    steps::reach("meet/pins-attached");
                    cx.send(&ToSupervisor::PinsAttached { mapper }, &[]);
                }
                Err(error) => tracing::warn!("pins of mapper {mapper} cannot be attached: {error}"),
            }
        }
        ToComponent::MapperFenced { mapper } => {
            if let Some(lender) = &*cx.0.lender.borrow() {
                lender.borrow_mut().fenced(mapper);
            }
        }
        ToComponent::Logbook { request } => {
            let asked = cx.0.books.borrow_mut().remove(&request);
            if let Some((_, answer)) = asked {
                let _ = answer.give(given.next());
            }
        }
        ToComponent::Session { request, session } => {
            let asked = cx.0.sessions_asked.borrow_mut().remove(&request);
            if let Some((_, _, answer)) = asked {
                let _ = answer.give(session);
            }
        }
        ToComponent::Trace { every, for_ms } => cx.trace_for(every, for_ms),
        ToComponent::AskCounters { request } => match &cx.0.places {
            Some(places) => places.ask_all(Question::Counters { request }),
            None => cx.send(&ToSupervisor::Counters { request, counters: cx.0.counters.values() }, &[]),
        },
        ToComponent::AskPulse { request } => match &cx.0.places {
            Some(places) => places.ask_all(Question::Pulse { request }),
            None => cx.0.pulse.asked(cx, request),
        },
        ToComponent::Stop => cx.0.stop.happen(),
        ToComponent::HandOver { within_ms } => drop(spawn(hand_over::end_with_nothing_begun(cx.clone(), within_ms))),
        ToComponent::Adopt { turn } => adoption::account(cx, turn),
        ToComponent::Welcome(_)
        | ToComponent::Examine { .. }
        | ToComponent::Rejected { .. }
        | ToComponent::Heritage { .. }
        | ToComponent::Held { .. }
        | ToComponent::Recovers(_) => {
            tracing::warn!("the supervisor greets twice");
        }
    }
}

fn met(cx: &Context, lender: crate::LenderId, region: Option<crate::RegionId>, error: Option<std::io::Error>) {
    let error = error.map(|error| error.to_string());
    cx.send(&ToSupervisor::LenderMet { lender, region, error }, &[]);
}
