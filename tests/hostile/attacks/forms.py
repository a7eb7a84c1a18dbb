"""The multipart form, the adapter's name, and the names of the files in it."""

from __future__ import annotations

import gzip
import zlib

from tests.hostile.uploads import (
    BOUNDARY,
    CONFIG,
    NAME,
    TENSORS,
    ZIP,
    Attacks,
    Upload,
    archive,
    body,
    entries_of,
    file_part,
    part,
    right,
    send,
    text_part,
)

ATTACKS = Attacks()
FORM = f"multipart/form-data; boundary={BOUNDARY.decode()}"
GOOD = send(right()).body


@ATTACKS.answer(415, "unsupported_media_type", "multipart/form-data")
def body_without_content_type() -> Upload:
    return Upload(GOOD, None)


@ATTACKS.answer(415, "unsupported_media_type", "multipart/form-data")
def body_that_claims_to_be_json() -> Upload:
    return Upload(GOOD, "application/json")


@ATTACKS.answer(415, "unsupported_media_type", "multipart/form-data")
def multipart_of_another_kind() -> Upload:
    return Upload(GOOD, FORM.replace("form-data", "mixed"))


@ATTACKS.answer(415, "unsupported_media_type", "multipart/form-data")
def form_without_boundary() -> Upload:
    return Upload(GOOD, "multipart/form-data")


@ATTACKS.answer(415, "unsupported_media_type", "multipart/form-data")
def form_with_an_empty_boundary() -> Upload:
    return Upload(GOOD, "multipart/form-data; boundary=")


@ATTACKS.form("multipart body is malformed")
def boundary_of_ten_thousand_characters() -> Upload:
    return Upload(GOOD.replace(BOUNDARY, b"b" * 10_000), f"multipart/form-data; boundary={'b' * 10_000}")


@ATTACKS.form("multipart body is malformed")
def boundary_that_is_not_in_the_body() -> Upload:
    return Upload(GOOD, "multipart/form-data; boundary=other")


@ATTACKS.form("ends before its last boundary")
def body_without_its_end() -> Upload:
    return Upload(GOOD[: -len(BOUNDARY) - 6])


@ATTACKS.form("ends before its last boundary")
def body_of_nothing() -> Upload:
    return Upload(b"")


@ATTACKS.form("ends before its last boundary")
def a_megabyte_of_almost_boundaries() -> Upload:
    almost = (b"\r\n--" + BOUNDARY[:-1]) * (2**20 // 7)
    return Upload(text_part("name", NAME.encode()) + file_part("README.md", almost))


@ATTACKS.form("multipart body is malformed")
def preamble_of_a_megabyte() -> Upload:
    return Upload(b"x" * 2**20 + b"\r\n" + GOOD)


@ATTACKS.form("multipart body is malformed")
def compressed_body() -> Upload:
    return Upload(gzip.compress(GOOD), headers={"Content-Encoding": "gzip"})


@ATTACKS.form("multipart body is malformed")
def compressed_bomb_as_body() -> Upload:
    return Upload(zlib.compress(bytes(2**24), 9), headers={"Content-Encoding": "deflate"})


@ATTACKS.form("multipart body is malformed")
def part_header_without_a_colon() -> Upload:
    return Upload(body(part(b"Content-Disposition", b"x")))


@ATTACKS.form("multipart body is malformed")
def part_header_of_a_megabyte() -> Upload:
    return Upload(body(part(b"X: " + b"x" * 2**20, b"x")))


@ATTACKS.form("multipart body is malformed")
def part_with_ten_thousand_headers() -> Upload:
    return Upload(body(part(b"\r\n".join([b"X: x"] * 10_000), b"x")))


@ATTACKS.form("multipart body is malformed")
def part_header_with_a_zero_byte_in_its_name() -> Upload:
    return Upload(body(part(b"Content-\0Disposition: form-data", b"x")))


@ATTACKS.form("''", "unknown part", param="")
def part_without_any_header() -> Upload:
    return Upload(body(part(b"X: x", b"x")))


@ATTACKS.form("more than 24 parts")
def ten_thousand_parts() -> Upload:
    return Upload(body(*(file_part(f"LICENSE.{number}", b"") for number in range(10_000))))


@ATTACKS.form("'tenant'", "unknown part", param="tenant")
def part_that_names_another_tenant() -> Upload:
    return send(right(), tenant="public")


@ATTACKS.form("'xxxx", "unknown part", param="x" * 64)
def part_with_a_name_of_four_thousand_characters() -> Upload:
    return Upload(body(text_part("x" * 4000, b"x")))


@ATTACKS.form("'name'", "unknown part", param="name")
def name_that_comes_as_a_file() -> Upload:
    return Upload(body(file_part("name", NAME.encode(), name="name")))


@ATTACKS.form("'files'", "with a file name", param="files")
def file_without_a_file_name() -> Upload:
    return Upload(body(text_part("name", NAME.encode()), text_part("files", b"{}")))


@ATTACKS.form("'files'", "with a file name", param="files")
def file_name_of_the_extended_form() -> Upload:
    head = b"Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''..%2F" + CONFIG.encode()
    return Upload(body(part(head, b"{}")))


@ATTACKS.form("name is given twice", param="name")
def name_given_twice() -> Upload:
    return Upload(body(text_part("name", b"a"), text_part("name", b"b")))


@ATTACKS.form("name is longer than 1024 bytes", param="name")
def name_of_a_megabyte() -> Upload:
    return send(right(), name="n" * 2**20)


@ATTACKS.form("name is not UTF-8", param="name")
def name_of_bytes_that_are_no_text() -> Upload:
    return send(right(), name=b"\xff\xfe")


@ATTACKS.form("name is needed", param="name")
def name_of_nothing() -> Upload:
    return send(right(), name="")


@ATTACKS.form("'../../etc/passwd' is not an adapter's name", param="name")
def name_that_climbs_out_of_the_store() -> Upload:
    return send(right(), name="../../etc/passwd")


@ATTACKS.form("'..' is not an adapter's name", param="name")
def name_of_the_folder_above() -> Upload:
    return send(right(), name="..")


@ATTACKS.form("'public/victim' is not an adapter's name", param="name")
def name_in_another_tenants_folder() -> Upload:
    return send(right(), name="public/victim")


@ATTACKS.form("'/etc/passwd' is not an adapter's name", param="name")
def name_of_an_absolute_path() -> Upload:
    return send(right(), name="/etc/passwd")


@ATTACKS.form("'.staging' is not an adapter's name", param="name")
def name_of_the_stores_own_folder() -> Upload:
    return send(right(), name=".staging")


@ATTACKS.form(r"'a\x00b' is not an adapter's name", param="name")
def name_with_a_zero_byte() -> Upload:
    return send(right(), name="a\0b")


@ATTACKS.form(r"'a\r\nSet-Cookie: b=c' is not an adapter's name", param="name")
def name_that_splits_a_header() -> Upload:
    return send(right(), name="a\r\nSet-Cookie: b=c")


@ATTACKS.form(r"'\uff41bc' is not an adapter's name", param="name")
def name_of_letters_that_only_look_alike() -> Upload:
    return send(right(), name="ａbc")


@ATTACKS.form("'Victim' is not an adapter's name", param="name")
def name_that_a_case_blind_disk_takes_for_another() -> Upload:
    return send(right(), name="Victim")


@ATTACKS.form("'victim@v1' is not an adapter's name", param="name")
def name_that_points_to_a_version() -> Upload:
    return send(right(), name="victim@v1")


@ATTACKS.form("dry_run is true or false", param="dry_run")
def dry_run_that_is_neither() -> Upload:
    return send(right(), dry_run="on")


@ATTACKS.form("files are needed", param="files")
def form_without_files() -> Upload:
    return send({})


@ATTACKS.form("adapter_config.json is given twice", param="files")
def file_given_twice() -> Upload:
    once = file_part(CONFIG, right()[CONFIG])
    return Upload(body(text_part("name", b"a"), once, once))


@ATTACKS.form("one zip or the files themselves", param="files")
def zip_beside_files() -> Upload:
    return send({ZIP: archive(entries_of(right())), **right()})


@ATTACKS.answer(413, "payload_too_large", "the upload is larger than")
def body_larger_than_any_adapter() -> Upload:
    return send({**right(), "README.md": b"x" * 18 * 2**20})


@ATTACKS.bad("'../adapter_config.json' is no file of an adapter")
def file_name_that_climbs() -> Upload:
    return send({"../adapter_config.json": b"{}"})


@ATTACKS.bad("'/etc/cron.d/adapter' is no file of an adapter")
def file_name_of_an_absolute_path() -> Upload:
    return send({"/etc/cron.d/adapter": b"{}"})


@ATTACKS.bad(r"'..\\adapter_config.json' is no file of an adapter")
def file_name_with_backslashes() -> Upload:
    return send({"..\\adapter_config.json": b"{}"})


@ATTACKS.bad(r"'adapter_config.json\x00.txt' is no file of an adapter")
def file_name_with_a_zero_byte() -> Upload:
    return send({"adapter_config.json\0.txt": b"{}"})


@ATTACKS.bad("'%2e%2e%2fadapter_config.json' is no file of an adapter")
def file_name_of_encoded_dots() -> Upload:
    return send({"%2e%2e%2fadapter_config.json": b"{}"})


@ATTACKS.bad("'adapter_config.json::$DATA' is no file of an adapter")
def file_name_of_an_alternate_stream() -> Upload:
    return send({"adapter_config.json::$DATA": b"{}"})


@ATTACKS.bad("'adapter_config.json.' is no file of an adapter")
def file_name_with_a_dot_at_its_end() -> Upload:
    return send({"adapter_config.json.": b"{}"})


@ATTACKS.bad(r"'adapter_config\u2024json' is no file of an adapter")
def file_name_with_a_dot_that_only_looks_alike() -> Upload:
    return send({"adapter_config․json": b"{}"})


@ATTACKS.bad("'xxxx", "… is no file of an adapter")
def file_name_of_three_thousand_characters() -> Upload:
    return send({"x" * 3000: b"{}"})


@ATTACKS.bad("'manifest.json' is no file of an adapter")
def file_name_of_the_stores_manifest() -> Upload:
    return send({**right(), "manifest.json": b"{}"})


@ATTACKS.bad("'modeling_adapter.py' is no file of an adapter")
def file_of_code() -> Upload:
    return send({**right(), "modeling_adapter.py": b"import os"})


@ATTACKS.bad("'adapter_model.bin' may hold a pickle")
def pickle_as_bin() -> Upload:
    return send({**right(), "adapter_model.bin": b"\x80\x04."})


@ATTACKS.bad("'decoder.PT' may hold a pickle")
def pickle_as_pt() -> Upload:
    return send({**right(), "decoder.PT": b"PK\3\4"})


@ATTACKS.bad("'prompts.nemo' may hold a pickle")
def pickle_in_a_nemo_archive() -> Upload:
    return send({"prompts.nemo": b"\x1f\x8b"})


@ATTACKS.bad("'cache-step9.pth' may hold a pickle")
def pickle_as_a_cartridge_checkpoint() -> Upload:
    return send({"cache-step9.pth": b"\x80\x02}"})


@ATTACKS.bad("'tensor.npy' may hold a pickle")
def pickle_in_a_numpy_array() -> Upload:
    return send({"tensor.npy": b"\x93NUMPY"})


@ATTACKS.bad("the adapter has no adapter_config.json")
def adapter_without_a_config() -> Upload:
    return send({TENSORS: right()[TENSORS]})


@ATTACKS.bad("the adapter has no adapter_model.safetensors")
def adapter_without_tensors() -> Upload:
    return send({CONFIG: right()[CONFIG]})


@ATTACKS.bad("README.md is not UTF-8 text")
def card_of_bytes_that_are_no_text() -> Upload:
    return send({**right(), "README.md": b"\x80\x04\x95"})


@ATTACKS.bad("LICENSE is not text: it holds zero bytes")
def licence_with_zero_bytes() -> Upload:
    return send({**right(), "LICENSE": b"MIT\0" * 9})


@ATTACKS.bad("README.md has 1,048,577 bytes, more than the 1,048,576 allowed")
def card_without_an_end() -> Upload:
    return send({**right(), "README.md": b"x" * (2**20 + 1)})


@ATTACKS.bad("the folder has 17 entries, more than 16")
def more_files_than_an_adapter_has() -> Upload:
    return send({**right(), **{f"LICENSE.{number}": b"" for number in range(15)}})
