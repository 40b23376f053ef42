from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from embedded.chat import SERVERS, names, pid, remembers, rights, say_hello, sql
from hubbub import Unavailable
from hubbub.embedded import Servers, delete_data, find, up
from hubbub.embedded.folder import Folder


async def test_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    before = rights(tmp_path)
    for start in (Servers(tmp_path).start, lambda: up(tmp_path)):
        with pytest.raises(Unavailable, match="holds other files"):
            await start()
    assert names(tmp_path) == ["thesis.txt"]
    assert rights(tmp_path) == before


@pytest.mark.parametrize("name", ["postgresql", "valkey"])
async def test_data_of_another_server_are_refused(tmp_path: Path, name: str) -> None:
    precious = tmp_path / name / "precious"
    precious.parent.mkdir()
    precious.write_text("all of it")
    before = rights(tmp_path)
    for start in (Servers(tmp_path).start, lambda: up(tmp_path)):
        with pytest.raises(Unavailable, match="holds other files"):
            await start()
    assert not await delete_data(tmp_path)
    assert names(tmp_path) == [name]
    assert precious.read_text() == "all of it"
    assert rights(tmp_path) == before


async def test_folder_without_passwords_after_a_kill_is_set_up_again(tmp_path: Path) -> None:
    for name in ("commands.lock", ".gitignore", "passwords.json.new"):
        (tmp_path / name).touch()
    folder = Folder(tmp_path)
    async with folder.command():
        assert folder.set_up() == folder.find()


async def test_file_instead_of_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Unavailable, match="cannot start servers"):
        await Servers(tmp_path / "file").start()
    assert find(tmp_path / "file") is None


async def test_unreadable_passwords_are_an_error_and_not_replaced(copied_folder: Path) -> None:
    passwords = copied_folder / "passwords.json"
    passwords.write_text('{"postgresql": ')
    with pytest.raises(Unavailable, match=r"passwords\.json that cannot be read"):
        await Servers(copied_folder).start()
    assert passwords.read_text() == '{"postgresql": '
    passwords.unlink()
    await delete_data(copied_folder)


async def test_repr_and_error_have_no_password(folder: Path) -> None:
    server_folder = Folder(folder).find()
    secrets = json.loads((folder / "passwords.json").read_text()).values()
    assert len(set(secrets)) == 3
    assert not [secret for secret in secrets if secret in repr(server_folder)]


@pytest.mark.usefixtures("as_root")
async def test_servers_run_below_private_home_without_changing_its_rights(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "root's home"
    folder = home / "chat project" / ".hubbub"
    folder.parent.mkdir(parents=True)
    home.chmod(0o700)
    copying = await asyncio.create_subprocess_exec("cp", "-a", made, folder)
    assert await copying.wait() == 0

    async with Servers(folder) as settings:
        hello = await say_hello(settings)
        for name in SERVERS:
            assert (await asyncio.to_thread(Path(f"/proc/{pid(folder, name)}").stat)).st_uid != 0
    assert (folder / "postgresql" / "PG_VERSION").exists()
    async with Servers(folder) as settings:
        assert await remembers(settings, hello)
        assert await sql(settings, "SELECT 1") == 1
    assert rights(home) == 0o700


@pytest.mark.usefixtures("as_root")
async def test_data_are_made_below_private_home(tmp_path: Path) -> None:
    assert rights(tmp_path) == 0o700
    async with Servers(tmp_path / "servers", fsync=False) as settings:
        assert await sql(settings, "SELECT current_user::text") == "chatuser"


async def test_moved_folder_keeps_its_data(copied_folder: Path, tmp_path: Path) -> None:
    async with Servers(copied_folder) as settings:
        hello = await say_hello(settings)
    moved = tmp_path / "elsewhere"
    shutil.move(copied_folder, moved)
    async with Servers(moved) as settings:
        assert await remembers(settings, hello)


async def test_symbolic_link_leads_to_the_same_servers(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    async with Servers(link) as settings:
        assert await sql(settings, "SELECT 1") == 1
        with pytest.raises(Unavailable, match="has servers of its own here"):
            await Servers(folder).start()


@pytest.mark.usefixtures("as_root")
async def test_folder_of_another_user_is_refused(empty_folder: Path) -> None:
    os.chown(empty_folder, 54_321, -1)
    with pytest.raises(Unavailable, match="belongs to another user"):
        await Servers(empty_folder).start()
    assert names(empty_folder) == []
    os.chown(empty_folder, os.geteuid(), -1)


async def test_deleting_data_keeps_other_files(copied_folder: Path) -> None:
    (copied_folder / "notes.txt").write_text("mine")
    assert await delete_data(copied_folder)
    assert names(copied_folder) == ["notes.txt"]


async def test_interrupted_deletion_keeps_passwords_and_can_be_repeated(
    copied_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(path: Path) -> None:
        raise OSError(f"the disk of {path} is gone")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", breaks_off)
        with pytest.raises(Unavailable, match="cannot delete the data"):
            await delete_data(copied_folder)
    assert {"passwords.json", "postgresql", "valkey"} & set(names(copied_folder)) > {"passwords.json"}
    assert await delete_data(copied_folder)
    assert copied_folder.name not in names(copied_folder.parent)


async def test_deleting_data_does_not_follow_a_symbolic_link(copied_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("all of it")
    shutil.rmtree(copied_folder / "valkey")
    (copied_folder / "valkey").symlink_to(tmp_path)
    assert await delete_data(copied_folder)
    assert (tmp_path / "precious").read_text() == "all of it"
