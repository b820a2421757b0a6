//! `atoll fs check`: every structure and checksum, of the running system or of an image.

use std::path::Path;

use protocol::fs::CheckPage;
use serde_json::json;

use super::with_volume;
use crate::args::Common;
use crate::bar::{Bar, Counts};
use crate::output::{self, Colour, Failed, paint};
use crate::why::why;

/// Asks the running file system.
pub fn running(common: &Common) -> Result<(), Failed> {
    let bar = Bar::new(Counts::Things, 1);
    bar.name("checking");
    let (checked, problems) = with_volume(common, async |volume| {
        let mut problems = Vec::new();
        let mut checked = 0;
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let CheckPage { next, checked_blocks, total_blocks, problems: more } =
                volume.client.check(volume.client.root(), at).await.map_err(|error| why(&"the volume", &error))?;
            bar.at(checked_blocks, total_blocks);
            checked = checked_blocks;
            problems.extend(more);
            cursor = next;
        }
        Ok((checked, problems))
    })?;
    bar.end();
    tell(common, checked, &problems)
}

/// Reads an image file itself; nothing needs to run.
pub fn image(common: &Common, image: &Path) -> Result<(), Failed> {
    let failed = |error: &std::io::Error| Failed::new(format!("{}: {}", image.display(), output::reason(error)));
    let lock = std::fs::File::open(image).map_err(|error| failed(&error))?;
    if image.is_dir() {
        return Err(Failed::new(format!("{}: it is a directory", image.display())));
    }
    // A driver holds its image exclusively; what it is writing would look like damage here.
    if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock_shared() {
        return Err(Failed::new(format!("{}: a running system uses it", image.display()))
            .help("`atoll fs check` asks the running system; or stop it with `atoll down`"));
    }
    let bar = Bar::new(Counts::Things, 1);
    bar.name("checking");
    let found = fs_server::check_image(image, &mut |progress| {
        bar.at(progress.checked_blocks, progress.total_blocks);
    });
    bar.end();
    let report =
        found.map_err(|error| failed(&error))?.map_err(|error| Failed::new(format!("{}: {error}", image.display())))?;
    tell(common, report.checked_blocks, &report.lines())
}

fn tell(common: &Common, checked: u64, problems: &[String]) -> Result<(), Failed> {
    if common.json {
        output::json(&json!({"checked_blocks": checked, "problems": problems}))?;
    } else {
        for problem in problems {
            output::line(problem)?;
        }
        let colours = output::stdout_colours();
        output::line(&match problems.len() {
            0 => paint(&format!("{checked} blocks checked, no problem"), Colour::Green, colours),
            1 => paint(&format!("{checked} blocks checked, 1 problem"), Colour::Red, colours),
            count => paint(&format!("{checked} blocks checked, {count} problems"), Colour::Red, colours),
        })?;
    }
    if problems.is_empty() { Ok(()) } else { Err(Failed::told()) }
}
