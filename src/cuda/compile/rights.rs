//! Code is loaded only from what nobody else can write to: folders and files of the user or of root, without
//! write access for group or others.

use crate::error::{Error, Result};
use std::fs::Metadata;
use std::path::Path;

/// Refuses what others can write to; `metadata` is that of the open file, or of the folder at `path`.
///
/// # Errors
/// [`Error::Cuda`] naming `path`, who can write to it, and what to do.
#[cfg(unix)]
pub(super) fn check(path: &Path, metadata: &Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: a call without arguments that cannot fail.
    let user = unsafe { libc::geteuid() };
    judge(path, metadata.uid(), metadata.mode(), user)
}

/// Rights are not looked at elsewhere: caches lie in the user's own profile there.
#[cfg(not(unix))]
pub(super) fn check(_: &Path, _: &Metadata) -> Result<()> {
    Ok(())
}

#[cfg(unix)]
fn judge(path: &Path, owner: u32, mode: u32, user: u32) -> Result<()> {
    let path = path.display();
    let (why, remedy) = if owner != user && owner != 0 {
        (format!("it belongs to user {owner}, not to user {user} who runs this"), "remove it".to_string())
    } else if mode & 0o022 != 0 {
        (
            format!("others can write to it (mode {:o})", mode & 0o7777),
            format!("`chmod go-w {path}` if you trust what is in it"),
        )
    } else {
        return Ok(());
    };
    Err(Error::Cuda(format!(
        "{path}: {why}, so no compiled kernel is loaded from the kernel cache; {remedy}, or name another folder by KNET_CACHE"
    )))
}

/// Makes a folder, and those above it that are missing, for the user alone.
pub(super) fn create_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Takes from a file what others could do with it, whatever the mask of the process allows.
pub(super) fn make_private(file: &std::fs::File) -> std::io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let _ = file;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_write_to_is_refused_by_name() {
        let judge = |owner, mode| judge(Path::new("/a/cache"), owner, mode, 1000).map_err(|e| e.to_string());
        for (owner, mode) in [(1000, 0o40700), (1000, 0o40755), (0, 0o40755), (1000, 0o100600)] {
            assert_eq!(judge(owner, mode), Ok(()), "{owner} {mode:o}");
        }
        for (owner, mode, wanted) in [
            (1000, 0o40775, "mode 775"),
            (1000, 0o41777, "mode 1777"),
            (0, 0o40757, "mode 757"),
            (1001, 0o40700, "belongs to user 1001"),
        ] {
            let said = judge(owner, mode).unwrap_err();
            let fragments = ["cuda: /a/cache: ", wanted, "KNET_CACHE"];
            assert!(fragments.iter().all(|fragment| said.contains(fragment)), "{said}");
        }
    }

    #[test]
    fn what_is_made_is_for_the_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("a/b");
        create_private(&made).unwrap();
        check(&made, &std::fs::metadata(&made).unwrap()).unwrap();
        let file = std::fs::File::create(made.join("c")).unwrap();
        make_private(&file).unwrap();
        let modes = [made.parent().unwrap(), &made, &made.join("c")]
            .map(|path| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).unwrap()) & 0o777);
        assert_eq!(modes, [0o700, 0o700, 0o600]);
    }
}
