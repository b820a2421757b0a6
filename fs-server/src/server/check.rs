//! `check` while the volume is in use: one check at a time runs in the background, callers follow it step by step.
//!
//! Cursor 0 begins (or joins what runs); 1 waits for progress; from 2 on come the problems that were found.

use super::device::LeasedDevice;
use crate::sync::Bell;
use crate::{Error, Progress, Report, Volume};
use kernel_ipc::{CallError, runtime};
use protocol::fs::{CheckError, CheckPage};
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of problems in one page: they share a window of 4 KiB.
const PAGE_BYTES: usize = 2500;
const PROBLEM_BYTES: usize = 300;
const WAIT: u64 = 1;
const FIRST_PROBLEM: u64 = 2;

/// Blocks between two answers.
const STEP_BLOCKS: u64 = 16_384;

/// The check that runs, or the last one that ran.
#[derive(Default)]
pub(super) struct Checks(RefCell<Option<Rc<Check>>>);

#[derive(Default)]
struct Check {
    progress: RefCell<Progress>,
    outcome: RefCell<Option<Result<Report, Error>>>,
    bell: Bell,
}

impl Checks {
    pub(super) async fn step(
        &self,
        volume: &Volume<LeasedDevice>,
        cursor: u64,
    ) -> Result<CheckPage, CallError<CheckError>> {
        let check = match cursor {
            0 => self.begin(volume),
            _ => self.0.borrow().clone().ok_or(CheckError::BadCursor)?,
        };
        let seen = check.progress.borrow().checked_blocks;
        while check.outcome.borrow().is_none() && check.progress.borrow().checked_blocks < seen + STEP_BLOCKS {
            check.bell.heard().await;
        }
        let progress = *check.progress.borrow();
        let mut page = CheckPage {
            next: Some(WAIT),
            checked_blocks: progress.checked_blocks,
            total_blocks: progress.total_blocks,
            problems: Vec::new(),
        };
        let outcome = check.outcome.borrow();
        let Some(outcome) = outcome.as_ref() else { return Ok(page) };
        let lines = match outcome {
            Ok(report) => report.lines(),
            Err(Error::Device(_)) => return Err(CheckError::Io.into()),
            Err(error) => vec![error.to_string()],
        };
        let first = cursor.saturating_sub(FIRST_PROBLEM) as usize;
        let mut bytes = 0;
        for mut line in lines.iter().skip(first).cloned() {
            line.truncate(line.floor_char_boundary(PROBLEM_BYTES));
            bytes += line.len() + 8;
            if bytes > PAGE_BYTES {
                break;
            }
            page.problems.push(line);
        }
        let told = first + page.problems.len();
        page.next = (told < lines.len()).then_some(FIRST_PROBLEM + told as u64);
        Ok(page)
    }

    fn begin(&self, volume: &Volume<LeasedDevice>) -> Rc<Check> {
        let mut current = self.0.borrow_mut();
        if let Some(running) = current.as_ref().filter(|check| check.outcome.borrow().is_none()) {
            return Rc::clone(running);
        }
        let check = Rc::new(Check::default());
        *current = Some(Rc::clone(&check));
        let (volume, task) = (volume.clone(), Rc::clone(&check));
        drop(runtime::spawn(async move {
            let progress = &mut |progress| {
                *task.progress.borrow_mut() = progress;
                task.bell.ring();
            };
            let outcome = volume.check(progress).await;
            *task.outcome.borrow_mut() = Some(outcome);
            task.bell.ring();
        }));
        check
    }
}
